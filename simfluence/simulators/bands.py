"""Predictive bands around any simulator, calibrated on runs it has not seen.

Every training run r is simulated by a fit that left it out; its residuals e_r(t, z) say how wrong the
simulator is on new runs. With a scale that depends on the step and the test example,

    s(t, z)² = (Σ_r e_r(t, z)² + ν s̄(t)²) / (R + ν),    s̄(t)² the mean over runs and test examples,

the band is L̂ ± q(t) s(t, z), where q(t) is the ``level`` quantile of |e_r| / s_{−r} over all runs and
test examples at steps around t, s_{−r} without the run itself (cross-conformal prediction over runs).
The band holds for a new run drawn like the training runs, on average over runs and test examples; it is
no promise for an edited curriculum unlike all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.errors import NotFittedError
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator

SHRINKAGE = 4.0  # ν: how many runs' worth of trust the scale common to all test examples has


class PredictiveBands:
    """Bands that a new run stays in at each step with probability ``level``.

    Parameters
    ----------
    simulator : any simulator; it is copied, not changed.
    level : in 0 .. 1, of every single loss, not of a whole trajectory.
    folds : the training runs are left out in that many parts, each with a refit; simulators with a
        method ``refit`` keep the hyperparameters that all training runs chose, and those with
        ``out_of_fold`` need no refits.

    Attributes
    ----------
    simulator_ : fitted to all training runs.
    scale_ : s, float [step + 1, test]. quantile_ : q, float [step + 1].
    """

    def __init__(self, simulator: Simulator, level: float = 0.9, folds: int = 8) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        if folds < 2:
            raise ValueError(f"cross-fitting needs at least 2 folds, got {folds}")
        self.simulator = simulator
        self.level = level
        self.folds = folds

    def fit(self, train: RunSet) -> Self:
        """Fit the simulator, and the bands to its errors on left-out runs.

        Raises ValueError for fewer than three training runs.
        """
        if len(train) < 3:
            raise ValueError(f"bands need at least 3 training runs to learn errors from, got {len(train)}")
        self.simulator_ = copy.copy(self.simulator).fit(train)
        residuals = np.square(train.loss - cross_fitted(self.simulator_, train, self.folds))
        known = np.isfinite(residuals)
        squares = np.where(known, residuals, 0.0)
        self.scale_ = _scale(squares.sum(0), known.sum(0))
        scaled = np.full(squares.shape, np.nan)
        for run in range(len(train)):
            others = _scale(squares.sum(0) - squares[run], known.sum(0) - known[run])
            scaled[run] = np.sqrt(np.where(known[run], squares[run], np.nan)) / others
        self.quantile_ = self._quantiles(scaled)
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

    def predict(self, curricula: Sequence[Curriculum], initial_loss: npt.ArrayLike) -> tuple[Array, Array]:
        """(low, high), float [run, step + 1, test] each; like ``Simulator.simulate``.

        Equal to the initial loss before the first step; as wide as at the last recorded step after it.
        """
        if not hasattr(self, "scale_"):
            raise NotFittedError("call fit() on these PredictiveBands before predict()")
        center = self.simulator_.simulate(curricula, initial_loss)
        step = np.minimum(np.arange(center.shape[1]), len(self.scale_) - 1)
        half = (self.quantile_[:, None] * self.scale_)[step]
        half[0] = 0.0
        return center - half, center + half


def cross_fitted(simulator: Simulator, train: RunSet, folds: int) -> Array:
    """Rollouts of the training runs by fits that did not see them, float [run, step + 1, test].

    ``simulator`` has been fitted to ``train``.
    """
    if hasattr(simulator, "out_of_fold"):
        return simulator.out_of_fold(train)
    rollouts = np.full(train.loss.shape, np.nan)
    number = np.arange(len(train)) % min(folds, len(train))
    for fold in range(number.max() + 1):
        inside, outside = np.flatnonzero(number != fold), np.flatnonzero(number == fold)
        held_out = train[outside]
        refit = getattr(simulator, "refit", copy.copy(simulator).fit)
        fitted = refit(train[inside])
        simulated = fitted.simulate(held_out.curricula, held_out.initial_loss)
        rollouts[outside, : simulated.shape[1]] = simulated
    return rollouts


def _scale(squares: Array, known: npt.NDArray[np.int64]) -> Array:
    """s [step + 1, test] from sums of squares over runs, and how many runs are in them."""
    common = squares.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    floor = 1e-12 * max(common.max(), 1e-300)
    return np.sqrt((squares + SHRINKAGE * common) / (known + SHRINKAGE) + floor)
