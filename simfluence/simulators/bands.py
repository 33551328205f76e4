"""Predictive bands around any simulator, calibrated on runs it has not seen.

Every training run r is simulated by a fit that left it out; its residuals e_r(t, z) say how wrong the
simulator is on new runs. With a scale that depends on the step and the test example,

    s(t, z)² = (Σ_r e_r(t, z)² + ν s̄(t)²) / (R + ν),    s̄(t)² the mean over runs and test examples,

the band is L̂ ± q(t) s(t, z), where q(t) is the ``level`` quantile of |e_r| / s_{−r} over all runs and
test examples at steps around t, s_{−r} without the run itself (cross-conformal prediction over runs).
The band holds for a new run drawn like the training runs, on average over runs and test examples; of an
edited curriculum :mod:`simfluence.trust` says more. Past the last recorded step T no errors are known; the
half-width there grows in proportion to the steps, t / T, as an error in the drift would
(analysis/results/schedules.md: what such bands cover of retrained longer curricula).

The mean loss of m test examples has errors of its own, ē_r(t). With t the quantile of Student's distribution
for R + ν degrees of freedom, and h̄ the root mean square of the half-widths q s of the m, its half-width is h,

    h² = (t² Σ_r ē_r² + ν h̄² (1/m + CORRELATION)) / (R + ν).

Of fewer than three runs no errors are known. There s is ``UNKNOWN`` times how far losses have moved by then.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit  # quantiles; scipy.stats takes long to import

from simfluence.curriculum import Curriculum
from simfluence.errors import NotFittedError
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator
from simfluence.simulators.baselines import MeanTrajectory

IntArray = npt.NDArray[np.int64]

SHRINKAGE = 4.0
"""ν: how many runs' worth of trust the scale common to all test examples has."""
CORRELATION = 0.1
"""The usual correlation of two test examples' errors (analysis/results/answers.md)."""
UNKNOWN = 0.3
"""Runs of other curricula usually end within this share of how far losses move (the same)."""
_POINTS = 32
"""Errors are kept at no more steps."""
_ENOUGH = 3


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
    skill_ : float [step + 1], skill over the mean trajectory on runs that were left out; of fewer than three
        runs half the share that scores explain of them, since none was left out.
    errors_ : float32 [run, point, test], the residuals e after the steps ``points_``; NaN where not known.
    """

    fitted: ClassVar[tuple[str, ...]] = ("scale_", "quantile_", "skill_", "errors_", "points_")
    simulator_: Simulator | None = None

    def __init__(self, simulator: Simulator, level: float = 0.9) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        self.simulator = simulator
        self.level = level

    def fit(self, train: RunSet, validation: RunSet | None = None) -> Self:
        """Fit the simulator, and the bands to its errors on training runs that were left out.

        Validation runs choose the simulator's hyperparameters, as in ``Simulator.fit``, and nothing of the
        bands. Raises ValueError where the simulator's choice leaves no run out.
        """
        simulator = copy.copy(self.simulator).fit(train, validation)
        if len(train) < _ENOUGH:
            self._guess(simulator, train)
            return self
        errors = train.loss - simulator.out_of_fold(train)
        residuals = np.square(errors)
        known = np.isfinite(residuals)
        squares = np.where(known, residuals, 0.0)
        evaluated = np.flatnonzero(known.any(axis=(0, 2)))
        self.scale_ = _between(evaluated, _scale(squares.sum(0), known.sum(0)))
        scaled = np.full(squares.shape, np.nan)
        for run in range(len(train)):
            others = _scale(squares.sum(0) - squares[run], known.sum(0) - known[run])
            scaled[run] = np.sqrt(np.where(known[run], squares[run], np.nan)) / others
        self.quantile_ = self._quantiles(scaled)
        self.skill_ = self._skill(residuals, train)
        chosen = np.linspace(0, len(evaluated) - 1, min(_POINTS, len(evaluated))).round().astype(np.int64)
        self.points_: IntArray = evaluated[chosen]
        self.errors_ = errors[:, self.points_].astype(np.float32)
        self.simulator_ = simulator
        return self

    def _guess(self, simulator: Simulator, train: RunSet) -> None:
        """Of runs too few to leave one out."""
        moved = np.square(train.loss - train.initial_loss[:, None])
        known = np.isfinite(moved)
        sums = np.where(known, moved, 0.0).sum((0, 2)) / np.maximum(known.sum((0, 2)), 1)
        evaluated = np.flatnonzero(known.any((0, 2)))
        scale = np.repeat(UNKNOWN * np.sqrt(sums)[:, None], len(train.test), axis=1)
        self.scale_ = _between(evaluated, scale)
        self.quantile_ = np.full(len(scale), ndtri(0.5 + self.level / 2))
        self.skill_ = np.full(len(scale), 0.5 * np.nan_to_num(getattr(simulator, "explained_", 0.0)))
        self.points_, self.errors_ = np.zeros(1, np.int64), np.zeros((0, 1, len(train.test)), np.float32)
        self.simulator_ = simulator

    def _skill(self, residuals: Array, train: RunSet) -> Array:
        """1 − Σ e² / Σ ē² [step + 1], ē of the mean trajectory, over a window of a sixth of the steps."""
        usual = np.square(train.loss - MeanTrajectory().fit(train).out_of_fold(train))
        sums = np.nansum(residuals, axis=(0, 2)), np.nansum(usual, axis=(0, 2))
        half = max(len(sums[0]) // 12, 1)
        own, mean = (
            np.array([of[max(t - half, 1) : t + half + 1].sum() for t in range(len(of))]) for of in sums
        )
        return np.asarray(1 - own / np.maximum(mean, 1e-300), np.float64)

    def half_width(self, step: int) -> Array:
        """Of the band around single losses after a step, float [test]."""
        recorded = len(self.scale_) - 1
        half = self.quantile_[min(step, recorded)] * self.scale_[min(step, recorded)]
        return np.asarray(half * max(step / recorded, 1.0), np.float64)

    def half_width_of_mean(self, rows: IntArray, step: int) -> float:
        """Of the band around the mean loss of these test examples after a step."""
        single = float(np.sqrt(np.square(self.half_width(step)[rows]).mean()))
        usual = single * np.sqrt(1 / len(rows) + CORRELATION)
        runs = len(self.errors_)
        if not runs or len(rows) == 1:
            return float(min(usual, single))
        at = np.searchsorted(self.points_, min(step, self.points_[-1]))
        errors = self.errors_[:, at, rows].astype(np.float64)
        errors = errors[np.isfinite(errors).any(1)]
        means = np.nanmean(errors, axis=1) if len(errors) else np.zeros(0)
        t = stdtrit(len(means) + SHRINKAGE, 0.5 + self.level / 2)
        grown = t * max(step / (len(self.scale_) - 1), 1.0)
        squares = grown**2 * np.square(means).sum() + SHRINKAGE * usual**2
        return float(np.sqrt(squares / (len(means) + SHRINKAGE)))

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
        half = np.stack([self.half_width(step) for step in range(center.shape[1])])
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
