"""The protocol and its tables, on synthetic and on real recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import synthetic_runs

from simfluence import LinearSimulator, MeanTrajectory, Persistence, RunSet, evaluate
from simfluence.evaluation import summary, table, to_markdown

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
