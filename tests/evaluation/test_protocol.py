"""The protocol and its tables, on synthetic and on real recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import synthetic_runs, with_losses

from simfluence import LinearSimulator, MeanTrajectory, Persistence, RunSet, evaluate
from simfluence.attribution import InfluenceScores
from simfluence.errors import RunDataError
from simfluence.evaluation import scores_as_simulators, summary, table, to_markdown
from simfluence.runs import ExampleTable

RECORDED = Path(__file__).parents[2] / "runs" / "openbookqa-minilm"


def test_scores_of_a_perfect_and_of_a_trivial_simulator() -> None:
    runs, *_ = synthetic_runs(n_runs=14)
    train, validation, test = runs.split(10, 1, 3)
    simulators = {"linear": LinearSimulator(1e-10), "persistence": Persistence()}
    evaluation = evaluate(simulators, train, test, validation)
    frame = summary(evaluation.scores).set_index(["method", "metric"])["mean"]
    assert frame["linear", "mse"] < 1e-8
    assert frame["linear", "skill"] == pytest.approx(1, abs=1e-6)
    assert frame["linear", "final_spearman"] == pytest.approx(1)
    assert frame["linear", "across_runs_spearman"] == pytest.approx(1)
    assert frame["mean_trajectory", "skill"] == 0
    expected = np.mean(np.square(test.loss[:, 1:] - test.loss[:, :1]))
    assert frame["persistence", "mse"] == pytest.approx(expected)
    assert ("persistence", "across_runs_spearman") not in frame.index


def test_a_run_cannot_be_trained_on_and_tested_on(runs: RunSet) -> None:
    with pytest.raises(ValueError, match="both sides"):
        evaluate({"mean_trajectory": MeanTrajectory()}, runs[:5], runs[4:])


@pytest.mark.parametrize("which", ["train", "test"])
def test_runs_over_other_examples_of_the_same_number_are_refused(runs: RunSet, which: str) -> None:
    tables = {"train": runs.train, "test": runs.test}
    tables[which] = ExampleTable.numbered(len(tables[which]), "other-")
    with pytest.raises(RunDataError, match="ids, groups or contents differ"):
        evaluate({"mean_trajectory": MeanTrajectory()}, runs[:5], RunSet(runs[5:].runs, **tables))


def test_a_test_example_without_losses_does_not_count(runs: RunSet) -> None:
    """In one test run a loss was never finite: it has no errors there, and no part in means."""
    losses = runs.loss
    losses[6, 1:, 2] = np.nan
    holed = with_losses(runs, losses)
    scores = evaluate({"linear": LinearSimulator(1.0)}, holed[:5], holed[5:]).scores
    whole = evaluate({"linear": LinearSimulator(1.0)}, runs[:5], runs[5:]).scores
    chosen = (
        (scores["run"] == "run-006") & (scores["test_example"] == "2") & scores["metric"].isin(["mse", "mae"])
    )
    assert chosen.sum() == 4
    assert scores.loc[chosen, "value"].isna().all()
    each = scores["metric"].isin(["mse", "mae"]) & ~chosen
    np.testing.assert_array_equal(scores.loc[each, "value"], whole.loc[each, "value"])
    mean = summary(scores).set_index(["method", "metric"]).loc[("linear", "mse"), "mean"]
    mse = scores[(scores["method"] == "linear") & (scores["metric"] == "mse")]
    assert mean == pytest.approx(mse.groupby("run")["value"].mean().mean())
    assert np.isfinite(mean)


def test_files_of_scores_are_simulators(runs: RunSet, tmp_path: Path) -> None:
    """Calibrated, as they are where they have units, and as a kernel where losses have log-odds."""
    scores = np.random.default_rng(0).normal(size=(12, 4))
    files = [str(tmp_path / name) for name in ("one", "two", "three")]
    InfluenceScores(scores, "with units", weighing="use").save(files[0])
    InfluenceScores(scores, "without").save(files[1])
    InfluenceScores(scores, "without").save(files[2])
    found = scores_as_simulators(files, runs)
    assert list(found) == [
        "with units, calibrated",
        "with units, as is",
        "with units, dynamics",
        "without, calibrated",
        "without, dynamics",
        f"without ({files[2]}), calibrated",
        f"without ({files[2]}), dynamics",
    ]
    assert not found["with units, as is"].calibrated
    below = with_losses(runs, runs.loss - 5)
    assert list(scores_as_simulators(files[:1], below)) == list(found)[:2]


def test_the_table_has_a_row_a_method_and_says_what_it_shows(runs: RunSet) -> None:
    evaluation = evaluate({"linear": LinearSimulator(1.0)}, runs[:5], runs[5:])
    cells = table(evaluation.scores)
    assert list(cells.index) == ["linear", "mean_trajectory"]
    assert cells.loc["mean_trajectory", "across-runs ρ"] == "–"
    assert "±" in cells.loc["linear", "all-steps MSE"]
    assert "jackknife" in to_markdown(evaluation.scores)


def test_real_recordings_hold_a_counterfactual_signal() -> None:
    """On the committed runs: the mean trajectory beats persistence, and the linear model beats both."""
    train, validation, test = RunSet.load(RECORDED).split(20, 2)
    simulators = {"persistence": Persistence(), "linear": LinearSimulator(center="pooled")}
    frame = summary(evaluate(simulators, train, test, validation).scores)
    skill = frame[frame["metric"] == "skill"].set_index("method")["mean"]
    assert skill["persistence"] < 0 < skill["linear"] < 1
