"""Bands hold the truth as often as they say, on runs that nothing was fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from families import known_runs

from simfluence.errors import NotFittedError
from simfluence.simulators import (
    AdditiveSimulator,
    EffectsSimulator,
    FeatureSimulator,
    LinearSimulator,
    MeanTrajectory,
    MultiplicativeSimulator,
    PredictiveBands,
)


@pytest.mark.parametrize(
    "simulator",
    [
        EffectsSimulator(),
        MeanTrajectory(),
        AdditiveSimulator(penalty=1.0),
        LinearSimulator(),
        MultiplicativeSimulator(per_test=True),
        FeatureSimulator(),
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


def test_a_better_simulator_has_narrower_bands():
    runs, _ = known_runs(np.random.default_rng(3), noise=0.005)
    widths = []
    for simulator in (EffectsSimulator(), MeanTrajectory()):
        low, high = PredictiveBands(simulator).fit(runs).predict(runs.curricula, runs.initial_loss)
        widths.append((high - low)[:, 1:].mean())
    assert widths[0] < 0.5 * widths[1]


def test_the_given_simulator_is_not_touched():
    runs, _ = known_runs(np.random.default_rng(4))
    simulator = FeatureSimulator(penalty=1.0)
    PredictiveBands(simulator).fit(runs)
    assert not hasattr(simulator, "n_train_")


def test_what_cannot_be_done_is_said():
    runs, _ = known_runs(np.random.default_rng(5))
    with pytest.raises(ValueError, match="level"):
        PredictiveBands(MeanTrajectory(), level=90)
    with pytest.raises(ValueError, match="3 training runs"):
        PredictiveBands(MeanTrajectory()).fit(runs[:2])
    with pytest.raises(NotFittedError):
        PredictiveBands(MeanTrajectory()).predict(runs.curricula, runs.initial_loss)
