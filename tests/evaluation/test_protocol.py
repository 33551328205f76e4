"""The protocol and its tables, on synthetic and on real recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families import known_runs, synthetic_runs, with_losses

from simfluence import LinearSimulator, MeanTrajectory, Persistence, RunSet, ScoresSimulator, evaluate
from simfluence.attribution import InfluenceScores
from simfluence.errors import RunDataError
from simfluence.evaluation import off_scale, score, scores_as_simulators, summary, table, to_markdown
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
    assert chosen.sum() == 6  # errors of the simulator and of both baselines
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
    assert list(cells.index) == ["linear", "persistence", "mean_trajectory"]
    assert cells.loc["mean_trajectory", "across-runs ρ"] == "–"
    assert "±" in cells.loc["linear", "all-steps MSE"]
    assert "jackknife" in to_markdown(evaluation.scores)
    assert "off scale" not in to_markdown(evaluation.scores)


def test_errors_in_other_units_are_off_scale() -> None:
    """The true effects times 1e6: no prediction of losses as they are, a good one when calibrated."""
    runs, effects = known_runs(np.random.default_rng(0), beta=0.0)
    scores = InfluenceScores(-1e6 * effects, "ekfac", weighing="use")
    simulators = {
        "as is": ScoresSimulator(scores, calibrated=False),
        "calibrated": ScoresSimulator(scores),
    }
    evaluation = evaluate(simulators, runs[:6], runs[6:])
    cells = table(evaluation.scores)
    assert list(cells.loc["as is", ["all-steps MSE", "all-steps MAE", "skill"]]) == ["off scale"] * 3
    assert cells.loc["as is", "across-runs ρ"] == cells.loc["calibrated", "across-runs ρ"] != "–"
    assert (cells.drop(index="as is") != "off scale").all(axis=None)
    assert (
        to_markdown(evaluation.scores).count("\noff scale: a mean squared error of more than 100 times") == 1
    )
    frame = summary(evaluation.scores).set_index(["method", "metric"])["mean"]
    assert frame["as is", "skill"] < -1e6  # the number is in the frames
    written = evaluation.scores.query("method == 'as is' and metric == 'mse'")["value"]
    assert written.mean() == pytest.approx(frame["as is", "mse"])


@pytest.mark.parametrize(("times", "printed"), [(9.9, False), (10.1, True), (np.inf, True)])
def test_off_scale_is_a_hundred_times_the_error_of_persistence(
    runs: RunSet, times: float, printed: bool
) -> None:
    unchanged = np.broadcast_to(runs.loss[:, :1], runs.loss.shape)
    wrong = runs.loss + (times * (unchanged - runs.loss) if np.isfinite(times) else times)
    scores = pd.concat([score("persistence", runs, unchanged), score("other", runs, wrong)])
    assert (off_scale(scores) == ["other"]) is printed
    assert (table(scores, "persistence").loc["other", "skill"] == "off scale") is printed
    alone = scores.replace("persistence", "mean_trajectory")  # of frames without persistence
    assert (off_scale(alone) == ["other"]) is printed


def test_nothing_is_off_scale_where_losses_never_change(runs: RunSet) -> None:
    still = with_losses(runs, np.repeat(runs.loss[:, :1], runs.loss.shape[1], axis=1))
    evaluation = evaluate({"linear": LinearSimulator(1.0)}, runs[:5], still[5:])
    assert off_scale(evaluation.scores) == []


def test_real_recordings_hold_a_counterfactual_signal() -> None:
    """On the committed runs: the mean trajectory beats persistence, and the linear model beats both."""
    train, validation, test = RunSet.load(RECORDED).split(20, 2)
    simulators = {"persistence": Persistence(), "linear": LinearSimulator(center="pooled")}
    frame = summary(evaluate(simulators, train, test, validation).scores)
    skill = frame[frame["metric"] == "skill"].set_index("method")["mean"]
    assert skill["persistence"] < 0 < skill["linear"] < 1
