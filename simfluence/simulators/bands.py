"""Predictive bands around any simulator, calibrated on runs it has not seen.

Every training run r is simulated by a fit that left it out; its residuals e_r(t, z) say how wrong the
simulator is on new runs. With a scale that depends on the step and the test example,

    s(t, z)² = (Σ_r e_r(t, z)² + ν s̄(t)²) / (R + ν),    s̄(t)² the mean over runs and test examples,

the band is L̂ ± q(t) s(t, z), where q(t) is the ``level`` quantile of |e_r| / s_{−r} over all runs and
test examples at steps around t, s_{−r} without the run itself (cross-conformal prediction over runs).
The band holds for a new run drawn like the training runs, on average over runs and test examples; it is
no promise for an edited curriculum unlike all of them. Past the last recorded step T no errors are known;
the half-width there grows in proportion to the steps, t / T, as an error in the drift would
(analysis/results/schedules.md: what such bands cover of retrained longer curricula).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.errors import NotFittedError
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator

SHRINKAGE = 4.0
"""ν: how many runs' worth of trust the scale common to all test examples has."""


class PredictiveBands:
    """Bands that a new run stays in at each step with probability ``level``.

    Parameters
    ----------
    simulator : any simulator; it is copied, not changed.
    level : in 0 .. 1, of every single loss, not of a whole trajectory.

    Attributes
    ----------
    simulator_ : fitted to the training runs, as without bands.
    scale_ : s, float [step + 1, test]. quantile_ : q, float [step + 1].
    """

    FEWEST_RUNS: ClassVar[int] = 3
    simulator_: Simulator | None = None

    def __init__(self, simulator: Simulator, level: float = 0.9) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        self.simulator = simulator
        self.level = level

    def fit(self, train: RunSet, validation: RunSet | None = None) -> Self:
        """Fit the simulator, and the bands to its errors on training runs that were left out.

        Validation runs choose the simulator's hyperparameters, as in ``Simulator.fit``, and nothing of the
        bands. Raises ValueError for fewer than three training runs, and where the simulator's choice leaves
        no run out.
        """
        if len(train) < self.FEWEST_RUNS:
            raise ValueError(
                f"bands need at least {self.FEWEST_RUNS} training runs to learn errors from, got {len(train)}"
            )
        simulator = copy.copy(self.simulator).fit(train, validation)
        residuals = np.square(train.loss - simulator.out_of_fold(train))
        known = np.isfinite(residuals)
        squares = np.where(known, residuals, 0.0)
        evaluated = np.flatnonzero(known.any(axis=(0, 2)))
        self.scale_ = _between(evaluated, _scale(squares.sum(0), known.sum(0)))
        scaled = np.full(squares.shape, np.nan)
        for run in range(len(train)):
            others = _scale(squares.sum(0) - squares[run], known.sum(0) - known[run])
            scaled[run] = np.sqrt(np.where(known[run], squares[run], np.nan)) / others
        self.quantile_ = self._quantiles(scaled)
        self.simulator_ = simulator
        return self

    def _quantiles(self, scaled: Array) -> Array:
        """q [step + 1] of |e| / s [run, step + 1, test], over a window of a sixth of the steps."""
        points = scaled.shape[1]
        half = max(points // 12, 1)
        quantiles = np.zeros(points)
        for point in range(1, points):
            window = scaled[:, max(point - half, 1) : point + half + 1]
            window = window[np.isfinite(window)]
            quantiles[point] = np.quantile(window, self.level) if window.size else quantiles[point - 1]
        return quantiles

    def predict(
        self,
        curricula: Sequence[Curriculum],
        initial_loss: npt.ArrayLike,
        learning_rate: npt.ArrayLike | None = None,
    ) -> tuple[Array, Array]:
        """(low, high), float [run, step + 1, test] each; arguments as for ``Simulator.simulate``.

        Equal to the initial loss before the first step; past the last recorded step the width grows in
        proportion to the steps.
        """
        if self.simulator_ is None:
            raise NotFittedError("call fit() on these PredictiveBands before predict()")
        center = self.simulator_.simulate(curricula, initial_loss, learning_rate)
        step, recorded = np.arange(center.shape[1]), len(self.scale_) - 1
        half = (self.quantile_[:, None] * self.scale_)[np.minimum(step, recorded)]
        half *= np.maximum(step / recorded, 1.0)[:, None]
        half[0] = 0.0
        return center - half, center + half


def _between(evaluated: npt.NDArray[np.int64], scale: Array) -> Array:
    """s [step + 1, test], linear between the steps at which runs were evaluated."""
    if not len(evaluated):
        return scale
    steps = np.arange(len(scale))
    return np.stack([np.interp(steps, evaluated, of_test[evaluated]) for of_test in scale.T], axis=1)


def _scale(squares: Array, known: npt.NDArray[np.int64]) -> Array:
    """s [step + 1, test] from sums of squares over runs, and how many runs are in them."""
    common = squares.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    floor = 1e-12 * max(common.max(), 1e-300)
    return np.sqrt((squares + SHRINKAGE * common) / (known + SHRINKAGE) + floor)
