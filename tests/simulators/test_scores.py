"""Scores as simulators: what they predict as they are, and the one scalar that is fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import skill
from hypothesis import given
from hypothesis import strategies as st
from log_linear import log_linear_runs

from simfluence import Curriculum, RunSet, load_simulator
from simfluence.attribution import InfluenceScores
from simfluence.simulators import DynamicsSimulator, ScoresSimulator

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(6, 3))
BATCHES = [[RNG.integers(0, 6, size) for size in (2, 2, 4, 1)] for _ in range(5)]
INITIAL = RNG.uniform(1, 2, (5, 3))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def naive(weights: list[float], k: float) -> np.ndarray:
    """[run, step + 1, test], entry by entry."""
    losses = np.empty((5, 5, 3))
    for run, batches in enumerate(BATCHES):
        losses[run, 0] = INITIAL[run]
        for step, batch in enumerate(batches):
            losses[run, step + 1] = losses[run, step]
            for example in batch:
                losses[run, step + 1] -= k * weights[step] * SCORES[example] / len(batch)
    return losses


def runs(losses: np.ndarray, rates: list[float] | None = None) -> RunSet:
    return RunSet.from_arrays(BATCHES, losses, train=6, learning_rate=rates)


@pytest.mark.parametrize(
    ("weighing", "weights"), [("rate", [0.1, 0.2, 0.3, 0.4]), ("use", [1.0] * 4), ("run", [0.25] * 4)]
)
def test_known_scale_and_weights(weighing: str, weights: list[float]) -> None:
    true = naive(weights, 0.7)
    recorded = runs(true, [0.1, 0.2, 0.3, 0.4])
    scores = InfluenceScores(SCORES, "made up", weighing=weighing, scale=0.7)
    curricula = [Curriculum.from_batches(batches, 6) for batches in BATCHES]
    for calibrated in (True, False):
        simulator = ScoresSimulator(scores, calibrated).fit(recorded)
        assert simulator.scale_ == pytest.approx(0.7)
        np.testing.assert_allclose(simulator.simulate(curricula, INITIAL), true, rtol=1e-12)


@given(st.floats(-3, 3).filter(lambda factor: abs(factor) > 1e-3))
def test_calibration_undoes_the_units(factor: float) -> None:
    """Scores in other units, or of the wrong sign, are the same calibrated simulator."""
    losses = naive([1.0] * 4, 0.5) + np.random.default_rng(1).normal(0, 0.1, (5, 5, 3))
    recorded = runs(losses)
    one = ScoresSimulator(SCORES).fit(recorded)
    other = ScoresSimulator(factor * SCORES).fit(recorded)
    np.testing.assert_allclose(other.scale_ * factor, one.scale_)
    levels = one.simulate(recorded.curricula, recorded.initial_loss) - recorded.loss
    for k in (0.9, 1.1):  # least squares: no other scalar is closer
        worse = ScoresSimulator(SCORES, False, "use", k * one.scale_).fit(recorded)
        assert (
            np.square(levels).sum()
            <= np.square(worse.simulate(recorded.curricula, recorded.initial_loss) - recorded.loss).sum()
        )


def test_scores_without_units_are_calibrated_or_refused() -> None:
    recorded = runs(naive([1.0] * 4, 0.5))
    with pytest.raises(ValueError, match="no units"):
        ScoresSimulator(SCORES, calibrated=False).fit(recorded)
    with pytest.raises(ValueError, match="do not log"):
        ScoresSimulator(SCORES, weighing="rate").fit(recorded)
    with pytest.raises(ValueError, match=r"= \(6, 3\), got \(3, 6\)"):
        ScoresSimulator(SCORES.T).fit(recorded)
    with pytest.raises(ValueError, match="weighing must be one of"):
        ScoresSimulator(SCORES, weighing="often")


def test_saved_with_its_scores(tmp_path) -> None:
    recorded = runs(naive([0.1, 0.2, 0.3, 0.4], 0.5), [0.1, 0.2, 0.3, 0.4])
    simulator = ScoresSimulator(InfluenceScores(SCORES, "made up", weighing="rate")).fit(recorded[:3])
    simulator.save(tmp_path / "it.safetensors")
    loaded = load_simulator(tmp_path / "it.safetensors")
    expected = simulator.simulate(recorded.curricula, INITIAL)
    np.testing.assert_array_equal(loaded.simulate(recorded.curricula, INITIAL), expected)
    np.testing.assert_array_equal(loaded.fit(recorded[:3]).simulate(recorded.curricula, INITIAL), expected)


def test_replayed_scores_are_the_training_of_a_small_model(rng: np.random.Generator, tmp_path: Path) -> None:
    """Inner products of gradients: replayed they nearly are training, added up they are far from it."""
    runs, train, test = log_linear_runs(rng, 8)
    scores = InfluenceScores(train @ test.T, "made up")
    replayed, added = (make(scores).fit(runs[:4]) for make in (DynamicsSimulator, ScoresSimulator))
    assert skill(replayed, runs[:4], runs[4:]) > 0.97
    assert skill(added, runs[:4], runs[4:]) < 0.8
    replayed.save(tmp_path / "it.safetensors")
    loaded = load_simulator(tmp_path / "it.safetensors")
    expected = replayed.simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_array_equal(loaded.simulate(runs.curricula, runs.initial_loss), expected)
    again = loaded.fit(runs[:4]).simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_allclose(again, expected, rtol=1e-9)


def test_replayed_nothing_is_the_mean_trajectory(rng: np.random.Generator) -> None:
    runs, _, _ = log_linear_runs(rng, 8)
    nothing = DynamicsSimulator().fit(runs[:4])
    np.testing.assert_allclose(
        nothing.simulate(runs.curricula, runs.initial_loss)[:, 1:],
        np.broadcast_to(mean_of_log_odds(runs[:4]), runs.loss.shape)[:, 1:],
        rtol=1e-6,
    )


def test_what_cannot_be_replayed_is_said(rng: np.random.Generator) -> None:
    recorded = runs(naive([1.0] * 4, 0.5) - 5)
    with pytest.raises(ValueError, match="losses above 0, but one of -"):
        DynamicsSimulator(SCORES).fit(recorded)
    recorded = runs(naive([0.1] * 4, 0.5))
    with pytest.raises(ValueError, match=r"\(6, 3\), got \(3, 6\)"):
        DynamicsSimulator(SCORES.T).fit(recorded)
    with pytest.raises(ValueError, match="must be one array"):
        DynamicsSimulator([SCORES, SCORES]).fit(recorded)


def mean_of_log_odds(runs: RunSet) -> np.ndarray:
    """[step + 1, test]"""
    return np.log1p(np.exp(np.log(np.expm1(np.maximum(runs.loss, 1e-2))).mean(0)))
