"""Losses of any scale and sign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from families import known_runs, with_losses
from hypothesis import given
from hypothesis import strategies as st

from simfluence import AutoSimulator, RunSet
from simfluence.simulators.units import Units


@pytest.fixture(scope="module")
def known() -> tuple[RunSet, np.ndarray]:
    return known_runs(np.random.default_rng(0), runs=12)


def last_of(runs: RunSet, scores: np.ndarray) -> np.ndarray:
    """Predicted last losses of the last two runs, after a fit to the others; [run, test]."""
    auto = AutoSimulator(scores).fit(runs[:10])
    assert auto.taken_ != "mean trajectory"
    return auto.simulate(runs[10:].curricula, runs[10:].initial_loss)[:, -1]


@pytest.mark.parametrize("scale", [1e-6, 1000.0])
def test_predictions_scale_as_losses_do(known, scale: float) -> None:
    """Only how far usual losses are from their median may differ."""
    runs, effects = known
    median = float(np.median(runs.loss[:10]))
    assert 0.05 < median < 20
    plain = last_of(with_losses(runs, runs.loss / median), -effects) * median
    np.testing.assert_allclose(
        last_of(with_losses(runs, scale * runs.loss), -effects) / scale, plain, rtol=1e-5
    )


@pytest.mark.parametrize(
    "change", [lambda loss: loss - 5, lambda loss: np.log(np.expm1(loss)), lambda loss: 50 * loss - 3]
)
def test_losses_below_zero_are_predicted(known, change: Callable[[np.ndarray], np.ndarray]) -> None:
    runs, effects = known
    changed = with_losses(runs, change(runs.loss))
    found, true = last_of(changed, -effects), changed.loss[10:, -1]
    mean = changed.loss[:10, -1].mean(0)
    assert 1 - np.square(found - true).sum() / np.square(mean - true).sum() > 0.8


def test_usual_losses_are_left_alone(known) -> None:
    runs, _ = known
    assert Units.of(runs) == Units()
    assert Units().runs_into(runs) is runs


@given(st.floats(-100, 100), st.floats(0.01, 100))
def test_losses_come_back(offset: float, scale: float) -> None:
    losses = np.linspace(-3, 7, 11)
    units = Units(offset, scale)
    np.testing.assert_allclose(units.out_of(units.into(losses)), losses, atol=1e-9)


def test_out_of_fold_errors_are_in_the_losses_units(known) -> None:
    runs, effects = known
    small = with_losses(runs, 1e-3 * runs.loss)
    auto = AutoSimulator(-effects).fit(small[:10])
    predicted = auto.out_of_fold(small[:10])
    assert auto.error_ == pytest.approx(np.square(predicted - small[:10].loss)[:, 1:].mean(), rel=1e-6)
