"""Paired differences between methods, against Student's test and by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from simfluence.evaluation.comparison import paired_differences

RUNS, TESTS = 8, 5


def frame(values: dict[str, np.ndarray], metric: str = "mse") -> pd.DataFrame:
    """method → [run, test] as a long frame."""
    parts = [
        pd.DataFrame(
            {
                "run": np.repeat([f"run-{r}" for r in range(len(array))], array.shape[1]),
                "test_example": np.tile([f"z{z}" for z in range(array.shape[1])], len(array)),
                "method": method,
                "metric": metric,
                "value": array.ravel(),
            }
        )
        for method, array in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_as_students_test_of_the_means_of_runs() -> None:
    """With equally many test examples a run, clusters are runs, whose means are independent."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(RUNS, 1)) + 0.1 * rng.normal(size=(RUNS, TESTS)) for _ in range(2))
    found = paired_differences(frame({"a": a, "b": b}), "b").iloc[0]
    true = stats.ttest_rel(a.mean(1), b.mean(1))
    interval = true.confidence_interval(0.95)
    assert found["difference"] == pytest.approx((a - b).mean())
    assert found["runs"] == RUNS
    # statsmodels corrects by G/(G−1) · (N−1)/(N−k); Student's by G/(G−1)
    assert found["p"] == pytest.approx(true.pvalue, rel=1e-6)
    assert (found["low"], found["high"]) == pytest.approx(tuple(interval), rel=1e-6)


def test_test_examples_of_a_run_are_no_independent_evidence() -> None:
    """What all test examples of a run have in common counts once: of a hundred pairs of methods that do
    not differ, about five are called different, not most."""
    rng = np.random.default_rng(1)
    values = {f"m{k}": np.repeat(rng.normal(size=(RUNS, 1)), 20, axis=1) for k in range(100)}
    found = paired_differences(frame({"b": np.zeros((RUNS, 20)), **values}), "b")
    assert (found["p"] < 0.05).sum() <= 12
    assert (found["p_holm"] < 0.05).sum() <= 1


def test_holm_adjusts_all_methods_together() -> None:
    rng = np.random.default_rng(2)
    values = {name: rng.normal(0.2 * k, 1, (RUNS, TESTS)) for k, name in enumerate("abcd")}
    found = paired_differences(frame(values), "a")
    ordered = found.sort_values("p")["p"].to_numpy()
    by_hand = np.maximum.accumulate(np.minimum(ordered * np.array([3, 2, 1]), 1))
    np.testing.assert_allclose(found.sort_values("p")["p_holm"], by_hand)


@pytest.mark.parametrize(("metric", "expected"), [("mse", "yes"), ("final_spearman", "no")])
def test_whether_less_is_better_depends_on_the_metric(metric: str, expected: str) -> None:
    rng = np.random.default_rng(3)
    low, high = rng.normal(0, 0.01, (RUNS, 1)), rng.normal(1, 0.01, (RUNS, 1))
    assert (
        paired_differences(frame({"low": low, "high": high}, metric), "high", metric)["better"][0] == expected
    )


def test_what_cannot_be_compared_has_no_number() -> None:
    values = {
        "a": np.full((RUNS, TESTS), np.inf),
        "b": np.ones((RUNS, TESTS)),
        "same": np.ones((RUNS, TESTS)),
    }
    found = paired_differences(frame(values), "b").set_index("method")
    assert found.loc["a", ["difference", "low", "p", "p_holm"]].isna().all()
    assert found.loc["same", "difference"] == 0
    assert np.isnan(found.loc["same", "p"])
    assert (found["better"] == "").all()


def test_bad_input() -> None:
    scores = frame({"a": np.ones((2, TESTS)), "b": np.zeros((2, TESTS))})
    with pytest.raises(ValueError, match="3 runs at least, got 2"):
        paired_differences(scores, "b")
    with pytest.raises(ValueError, match="no method 'c'; there are a, b"):
        paired_differences(scores, "c")
    with pytest.raises(ValueError, match="metric must be one of"):
        paired_differences(scores, "b", "skill")
