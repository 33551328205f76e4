"""Tables of proportions and of losses by domain, as people publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simfluence import RunSet
from simfluence.errors import RunDataError

PROPORTIONS = pd.DataFrame({"run": ["a", "b"], "web": [0.75, 0.5], "code": [0.25, 0.5], "maths": [0.0, 0.0]})
LOSSES = pd.DataFrame(
    {"run": ["b", "a"], "news": [2.0, 2.1], "python": [1.5, 1.7]}  # in another order
)
SCHEDULES = pd.DataFrame(
    {"run": ["a", "a", "b"], "step": [2000, 6000, 6000], "web": [1.0, 0.25, 0.5], "code": [0.0, 0.75, 0.5]}
)
CURVES = pd.DataFrame(
    {
        "run": ["b", "a", "a", "a", "b"],
        "step": [0, 4000, 0, 6000, 6000],
        "news": [5.0, 3.0, 5.1, 2.0, 1.9],
        "python": [6.0, 4.0, 6.1, 3.0, 2.9],
    }
)


def test_final_losses_of_constant_mixtures() -> None:
    runs = RunSet.from_mixtures(PROPORTIONS, LOSSES, units=100, initial_loss=10.8)
    assert runs.ids == ["b", "a"]
    assert runs.train.ids == runs.train.groups == ["web", "code", "maths"]
    assert runs.test.ids == ["news", "python"]
    assert len(runs[1]) == 1
    np.testing.assert_allclose(runs[1].curriculum.counts().toarray(), [[75, 25, 0]])
    np.testing.assert_array_equal(runs[1].loss, [[10.8, 10.8], [2.1, 1.7]])


def test_shares_that_change_and_losses_over_steps() -> None:
    runs = RunSet.from_mixtures(SCHEDULES, CURVES, units={"a": 3, "b": 5})
    b, a = runs
    assert a.config["steps_each"] == 2000
    np.testing.assert_allclose(a.curriculum.counts().toarray(), [[6000, 0], [1500, 4500], [1500, 4500]])
    np.testing.assert_allclose(b.curriculum.counts().toarray(), np.full((3, 2), 5000))
    np.testing.assert_array_equal(a.evaluated, [0, 2, 3])
    np.testing.assert_array_equal(a.loss[:, 0], [5.1, 3.0, 2.0])
    np.testing.assert_array_equal(b.loss[:, 1], [6.0, 2.9])


def test_final_losses_of_schedules_are_those_at_their_ends() -> None:
    a = RunSet.from_mixtures(SCHEDULES, LOSSES, initial_loss=10.8)[1]
    assert (len(a), a.evaluated.tolist()) == (3, [0, 3])


def test_one_table_with_prefixes_as_a_file(tmp_path: Path) -> None:
    together = CURVES.merge(PROPORTIONS).rename(
        columns=lambda name: f"loss_{name}" if name in LOSSES.columns[1:] else name
    )
    together = together.rename(columns={name: f"share_{name}" for name in ("web", "code", "maths")})
    together = together[together["step"] > 0].assign(
        seed=3, run=lambda frame: frame["run"].map({"a": 7, "b": 8})
    )
    together.to_csv(tmp_path / "runs.csv", index=False)
    file = tmp_path / "runs.csv"
    runs = RunSet.from_mixtures(file, file, share_prefix="share_", loss_prefix="loss_", initial_loss=9.0)
    assert set(runs.ids) == {"7", "8"}
    assert runs.train.ids == ["web", "code", "maths"]
    seven = runs[runs.position("7")]
    assert seven.config["steps_each"] == 2000
    np.testing.assert_allclose(seven.curriculum.counts().toarray(), [[1500, 500, 0]] * 3)


def test_percentages_are_divided_by_their_sums_if_told() -> None:
    percent = PROPORTIONS.assign(web=[60, 50], code=[40, 49])
    options: dict[str, Any] = {"initial_loss": 10.8}
    with pytest.raises(RunDataError, match=r"row 0 sum to 100, which is \+99 off.*normalize=True"):
        RunSet.from_mixtures(percent, LOSSES, **options)
    b = RunSet.from_mixtures(percent, LOSSES, normalize=True, **options)[0]
    np.testing.assert_allclose(b.curriculum.consumed, 1.0)


@pytest.mark.parametrize(
    ("proportions", "losses", "options", "message"),
    [
        (
            PROPORTIONS.assign(web=[-0.75, 0.5]),
            LOSSES,
            {},
            "row 0 of proportions: web must be at least 0 and finite, got -0.75",
        ),
        (
            PROPORTIONS.assign(web=[np.nan, 0.5]),
            LOSSES,
            {},
            "row 0 of proportions: web must be a number, got",
        ),
        (PROPORTIONS.assign(web=["?", 0.5]), LOSSES, {}, r"web must be a number, got '\?'"),
        (PROPORTIONS.drop(columns="run"), LOSSES, {}, "proportions needs a column 'run'"),
        (PROPORTIONS[:1], LOSSES, {}, "run 'b' has losses but no proportions"),
        (PROPORTIONS, LOSSES[:1], {}, "run 'a' has proportions but no losses"),
        (
            PROPORTIONS,
            CURVES.drop(columns="step"),
            {},
            "run 'a' stands twice in the table of losses; a table",
        ),
        (
            pd.concat([SCHEDULES, SCHEDULES]),
            CURVES,
            {},
            "'a' stands twice in the table of proportions at one",
        ),
        (
            SCHEDULES[SCHEDULES.step != 6000],
            CURVES[CURVES.run == "a"],
            {},
            "after 6000 steps, but .* step 2000",
        ),
        (SCHEDULES.assign(step=[0, 1, 1]), CURVES, {}, "row 0 of proportions: step must be .* from 1, got 0"),
        (
            PROPORTIONS,
            CURVES.assign(step=0.5),
            {},
            "row 0 of losses: step must be a whole number from 0, got 0.5",
        ),
        (
            PROPORTIONS,
            LOSSES.assign(news=[np.nan, 1.0]),
            {},
            "loss of test example 'news' at step 1 is NaN or",
        ),
        (
            PROPORTIONS,
            LOSSES.assign(news=["?", 1.0]),
            {},
            r"row 0 of losses: news must be a number, got '\?'",
        ),
        (PROPORTIONS, LOSSES, {"units": -2}, "units must be above 0 and finite, got -2.0 for run 'b'"),
        (PROPORTIONS, LOSSES, {"units": {"a": 1}}, "units has none of run 'b'"),
        (PROPORTIONS, LOSSES, {"units": {"a": 1, "b": np.nan}}, "got nan for run 'b'"),
        (PROPORTIONS, LOSSES, {"units": "many"}, "units must be one number, or run name"),
        (PROPORTIONS.assign(web=[np.inf, 0.5]), LOSSES, {}, "web must be at least 0 and finite, got inf"),
        (PROPORTIONS.assign(web=[0.7, 0.5]), LOSSES, {}, "row 0 sum to 0.95, which is -0.05 off"),
        (pd.concat([PROPORTIONS, PROPORTIONS]), LOSSES, {}, "'a' stands twice in the table of proportions"),
        (PROPORTIONS, LOSSES.assign(run=["x", "y"]), {}, r"'x' has losses but no proportions \(2 such runs"),
        (
            PROPORTIONS.set_axis(["run", "web", "web", "maths"], axis=1),
            LOSSES,
            {},
            "proportions has several columns 'web'",
        ),
        (PROPORTIONS, LOSSES, {"initial_loss": {"news": 9, "pyton": 9}}, "'pyton' is not in the table"),
        (
            PROPORTIONS,
            LOSSES,
            {"share_prefix": "share_"},
            "2 rows and 0 columns whose names begin with 'share_'",
        ),
        (PROPORTIONS, LOSSES, {"initial_loss": None}, "no losses before its first step"),
    ],
)
def test_what_the_tables_must_hold(proportions: Any, losses: Any, options: Any, message: str) -> None:
    with pytest.raises(RunDataError, match=message):
        RunSet.from_mixtures(proportions, losses, **{"initial_loss": 10.8} | options)


def test_a_missing_loss_may_be_left_out() -> None:
    losses = LOSSES.assign(news=[np.nan, 1.0])
    runs = RunSet.from_mixtures(PROPORTIONS, losses, initial_loss=10.8, allow_nonfinite=True)
    assert np.isnan(runs[0].loss[1, 0])
