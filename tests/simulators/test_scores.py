"""Scores as simulators: what they predict as they are, and the one scalar that is fitted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfluence import Curriculum, RunSet, load_simulator
from simfluence.attribution import InfluenceScores
from simfluence.simulators import ScoresSimulator

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(6, 3))
BATCHES = [[RNG.integers(0, 6, size) for size in (2, 2, 4, 1)] for _ in range(5)]
INITIAL = RNG.uniform(1, 2, (5, 3))


def naive(weights: list[float], k: float) -> np.ndarray:
    return naive_of(SCORES, weights, k)


def naive_of(scores: np.ndarray, weights: list[float], k: float) -> np.ndarray:
    """[run, step + 1, test], entry by entry."""
    losses = np.empty((5, 5, 3))
    for run, batches in enumerate(BATCHES):
        losses[run, 0] = INITIAL[run]
        for step, batch in enumerate(batches):
            losses[run, step + 1] = losses[run, step]
            for example in batch:
                losses[run, step + 1] -= k * weights[step] * scores[example] / len(batch)
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


@settings(max_examples=25, deadline=None)
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
        stated = InfluenceScores(SCORES, "made up", weighing="use", scale=k * one.scale_)
        worse = ScoresSimulator(stated, calibrated=False).fit(recorded)
        assert (
            np.square(levels).sum()
            <= np.square(worse.simulate(recorded.curricula, recorded.initial_loss) - recorded.loss).sum()
        )


def test_scores_without_units_are_calibrated_or_refused() -> None:
    recorded = runs(naive([1.0] * 4, 0.5))
    with pytest.raises(ValueError, match="no units"):
        ScoresSimulator(SCORES, calibrated=False).fit(recorded)
    with pytest.raises(ValueError, match="do not log"):
        ScoresSimulator(InfluenceScores(SCORES, "made up", weighing="rate")).fit(recorded)
    with pytest.raises(ValueError, match=r"= \(6, 3\), got \(3, 6\)"):
        ScoresSimulator(SCORES.T).fit(recorded)
    with pytest.raises(ValueError, match="weighing must be one of"):
        ScoresSimulator(InfluenceScores(SCORES, "made up", weighing="often")).fit(recorded)


def test_saved_with_its_scores(tmp_path) -> None:
    recorded = runs(naive([0.1, 0.2, 0.3, 0.4], 0.5), [0.1, 0.2, 0.3, 0.4])
    simulator = ScoresSimulator(InfluenceScores(SCORES, "made up", weighing="rate")).fit(recorded[:3])
    simulator.save(tmp_path / "it.safetensors")
    loaded = load_simulator(tmp_path / "it.safetensors")
    expected = simulator.simulate(recorded.curricula, INITIAL)
    np.testing.assert_array_equal(loaded.simulate(recorded.curricula, INITIAL), expected)
    np.testing.assert_array_equal(loaded.fit(recorded[:3]).simulate(recorded.curricula, INITIAL), expected)


def test_known_rates_of_other_curricula_replace_the_recorded_ones() -> None:
    """Scores that are inner products of gradients: L_0 − k Σ η S, at any η."""
    recorded = runs(naive([0.1, 0.2, 0.3, 0.4], 0.7), [0.1, 0.2, 0.3, 0.4])
    curricula = [Curriculum.from_batches(batches, 6) for batches in BATCHES]
    by_rate, by_use = (
        ScoresSimulator(InfluenceScores(SCORES, "made up", weighing=weighing)).fit(recorded)
        for weighing in ("rate", "use")
    )
    other = [0.4, 0.0, 0.1, 1.0]
    expected = naive(other, by_rate.scale_)
    np.testing.assert_allclose(by_rate.simulate(curricula, INITIAL, other), expected, rtol=1e-12)
    np.testing.assert_array_equal(
        by_use.simulate(curricula, INITIAL, other), by_use.simulate(curricula, INITIAL)
    )
    with pytest.raises(ValueError, match=r"learning_rate must be \[step\] = \(4,\)"):
        by_rate.simulate(curricula, INITIAL, [0.1])


def test_scores_at_several_steps_are_used_from_their_steps_on() -> None:
    """Those after step 0 in the first two steps, those after step 2 in the others; the mean, if no step is
    known."""
    later = RNG.normal(size=SCORES.shape)
    both = InfluenceScores(np.stack([SCORES, later]), "made up", weighing="use", steps=(0, 2))
    early, late = naive([1, 1, 0, 0], 0.5), naive([0, 0, 1, 1], 0.5)
    expected = early + (naive_of(later, [0, 0, 1, 1], 0.5) - INITIAL[:, None])
    recorded = runs(expected)
    curricula = [Curriculum.from_batches(batches, 6) for batches in BATCHES]
    simulator = ScoresSimulator(both).fit(recorded)
    assert simulator.scale_ == pytest.approx(0.5)
    np.testing.assert_allclose(simulator.simulate(curricula, INITIAL), expected, rtol=1e-12)
    assert not np.allclose(expected, early + late - INITIAL[:, None])
    unknown, mean = (ScoresSimulator(scores).fit(recorded) for scores in (both.scores, both.scores.mean(0)))
    np.testing.assert_allclose(unknown.simulate(curricula, INITIAL), mean.simulate(curricula, INITIAL))


def test_steps_without_losses_are_left_out_of_the_calibration() -> None:
    true = naive([1.0] * 4, 0.5)
    true[0, 2, 1] = np.nan
    true[1, 3] = np.inf
    recorded = RunSet.from_arrays(BATCHES, true, train=6, allow_nonfinite=True)
    assert ScoresSimulator(SCORES).fit(recorded).scale_ == pytest.approx(0.5)
