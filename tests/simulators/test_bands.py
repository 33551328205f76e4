"""Bands hold the truth as often as they say, on runs that nothing was fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from families import cut, known_runs

from simfluence import RunSet
from simfluence.errors import NotFittedError, RunDataError
from simfluence.simulators import (
    AdditiveSimulator,
    AutoSimulator,
    EffectsSimulator,
    FeatureSimulator,
    LinearSimulator,
    MeanTrajectory,
    MultiplicativeSimulator,
    PredictiveBands,
)

PENALTIES = [1e-2, 1.0, 1e2]


@pytest.mark.parametrize(
    "simulator",
    [
        EffectsSimulator(),
        MeanTrajectory(),
        AdditiveSimulator(penalty=1.0),
        LinearSimulator(penalties=PENALTIES),
        MultiplicativeSimulator(penalties=PENALTIES),
        FeatureSimulator(),
        AutoSimulator(),
    ],
    ids=lambda s: s.name,
)
def test_coverage_on_new_runs(simulator):
    rng = np.random.default_rng(2)
    runs, _ = known_runs(rng, runs=52, noise=0.02, tests=6, steps=24)
    bands = PredictiveBands(simulator, level=0.9).fit(runs[:12])
    test = runs[12:]
    low, high = bands.predict(test.curricula, test.initial_loss)
    inside = (low <= test.loss) & (test.loss <= high)
    assert 0.85 < inside[:, 1:].mean() < 0.95
    assert 0.82 < inside[:, -1].mean() < 0.97
    np.testing.assert_array_equal(low[:, 0], test.initial_loss)


def test_bands_are_the_formulas():
    """s and q by a loop over runs, from predictions out of fold; the window is a step to each side."""
    runs, _ = known_runs(np.random.default_rng(3), noise=0.02, runs=6, steps=10, tests=3)
    bands = PredictiveBands(MeanTrajectory(), level=0.8).fit(runs)
    residuals = MeanTrajectory().fit(runs).out_of_fold(runs) - runs.loss

    def scale(numbers: list[int]) -> np.ndarray:
        squares = np.square(residuals[numbers])
        return np.sqrt((squares.sum(0) + 4 * squares.mean((0, 2))[:, None]) / (len(numbers) + 4))

    np.testing.assert_allclose(bands.scale_[1:], scale(list(range(6)))[1:], rtol=1e-6)
    scaled = np.stack(
        [
            np.abs(residuals[run]) / np.maximum(scale([other for other in range(6) if other != run]), 1e-9)
            for run in range(6)
        ]
    )
    for step in range(1, 11):
        window = scaled[:, max(step - 1, 1) : step + 2]
        assert bands.quantile_[step] == pytest.approx(np.quantile(window, 0.8), rel=1e-6)
    low, high = bands.predict(runs.curricula, runs.initial_loss)
    half = bands.quantile_[:, None] * bands.scale_
    np.testing.assert_allclose((high - low)[3, 1:], 2 * half[1:], rtol=1e-9)


def test_a_better_simulator_has_narrower_bands():
    runs, _ = known_runs(np.random.default_rng(3), noise=0.005)
    widths = []
    for simulator in (EffectsSimulator(), MeanTrajectory()):
        low, high = PredictiveBands(simulator).fit(runs).predict(runs.curricula, runs.initial_loss)
        widths.append((high - low)[:, 1:].mean())
    assert widths[0] < 0.5 * widths[1]


@pytest.mark.parametrize(
    "simulator", [EffectsSimulator(), AutoSimulator(), LinearSimulator(penalties=PENALTIES)]
)
def test_validation_runs_choose_the_simulator_and_nothing_of_the_bands(simulator):
    """Predictions are those of the simulator fitted with them, bands those of its errors out of fold."""
    runs, _ = known_runs(np.random.default_rng(3), noise=0.02)
    train, validation, test = runs[:6], runs[6:8], runs[8:]
    bands = PredictiveBands(simulator).fit(train, validation)
    alone = type(simulator)(**simulator.get_params()).fit(train, validation)
    asked = test.curricula, test.initial_loss
    np.testing.assert_array_equal(bands.simulator_.simulate(*asked), alone.simulate(*asked))
    low, high = bands.predict(*asked)
    np.testing.assert_allclose((low + high) / 2, alone.simulate(*asked), rtol=1e-12)
    squares = np.square(alone.out_of_fold(train) - train.loss).mean((0, 2))
    np.testing.assert_allclose(np.square(bands.scale_).mean(1)[1:], squares[1:], rtol=1e-6)


@pytest.mark.parametrize("scores", [False, True])
def test_three_runs_are_enough(scores):
    """Where scores are the kernel nothing is left out in the fit: the runs are then left out one by one."""
    runs, effects = known_runs(np.random.default_rng(3), noise=0.005, n=10)
    simulator = AutoSimulator(-effects if scores else None)
    bands = PredictiveBands(simulator).fit(runs[:3])
    low, high = bands.predict(runs[3:].curricula, runs[3:].initial_loss)
    assert np.isfinite(low).all()
    assert (low[:, 1:] < high[:, 1:]).all()
    inside = (low <= runs[3:].loss) & (runs[3:].loss <= high)
    assert inside[:, 1:].mean() > 0.6


def test_bands_grow_with_the_steps_past_those_recorded_and_end_with_the_run():
    runs, _ = known_runs(np.random.default_rng(3), noise=0.02)
    ragged = RunSet(
        [cut(run, 30 - 5 * (number % 2)) for number, run in enumerate(runs)], runs.train, runs.test
    )
    bands = PredictiveBands(MeanTrajectory()).fit(ragged)
    long = type(runs[0].curriculum).from_batches([*runs[0].curriculum, *runs[1].curriculum], 16)
    short = cut(runs[2], 7).curriculum
    low, high = bands.predict([long, short], runs.initial_loss[:2])
    width = (high - low)[0, 1:]
    np.testing.assert_allclose(width[30:], width[29] * np.arange(31, 61)[:, None] / 30)
    assert np.isnan(low[1, 8:]).all()
    assert np.isfinite(low[1, :8]).all()


def test_a_higher_level_is_a_wider_band():
    runs, _ = known_runs(np.random.default_rng(3), noise=0.02)
    widths = []
    for level in (0.5, 0.9):
        low, high = (
            PredictiveBands(MeanTrajectory(), level).fit(runs).predict(runs.curricula, runs.initial_loss)
        )
        widths.append((high - low)[:, 1:])
    assert (widths[0] < widths[1]).all()


def test_the_given_simulator_is_not_touched():
    runs, _ = known_runs(np.random.default_rng(4))
    simulator = FeatureSimulator(penalty=1.0)
    before = dict(vars(simulator))
    bands = PredictiveBands(simulator).fit(runs)
    assert vars(simulator) == before
    assert bands.simulator_ is not simulator
    with pytest.raises(NotFittedError):
        simulator.simulate(runs.curricula, runs.initial_loss)


def test_what_cannot_be_done_is_named():
    runs, _ = known_runs(np.random.default_rng(5))
    with pytest.raises(ValueError, match="level"):
        PredictiveBands(MeanTrajectory(), level=90)
    with pytest.raises(NotFittedError):
        PredictiveBands(MeanTrajectory()).predict(runs.curricula, runs.initial_loss)
    with pytest.raises(RunDataError):
        PredictiveBands(EffectsSimulator()).fit(RunSet([cut(run, 0) for run in runs], runs.train, runs.test))
