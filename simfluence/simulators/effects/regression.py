"""The regression of loss increments on what curricula consumed (analysis/METHODS.md, "Effects").

On the scale of a link g, over the intervals j of a grid of steps (grid.py), for each test example z:

    g(L_j) − g(L_{j-1}) = μ_j(z) + Σ_i x_{j,i} B_i(z, j) + Σ_q h_{j,q}(z) c_q(z) + ε_j(z)

    μ_j(z)     the drift, which is what happens in every run: a free value an interval, hardly penalised
    x_j        what the optimizer took in, Σ m̂ over the interval (momentum.py), less the average step's
    B_i(z, j)  effects of examples, smooth in training progress: Σ_k φ_k(j) b_{k,i}(z), b ~ N(0, 1)
    h_j(z)     Σ_i x_{j,i} S_i(z) P_k for every array S of attribution scores, and (L_0(z) − mean L_0(z)) P_k
               where initial losses differ between runs; P_k are Legendre polynomials of progress
    ε_j(z)     noise with the optimizer's momentum, ε_j = κ ε_{j-1} + s_j η_j, η white of variance λ

Effects are on *increments*, which add up: nothing is fed back, so a rollout is a sum and cannot explode. The
noise is white once (1 − κ·lag)/s_j is applied to both sides; s_j is the spread of increments between runs in
interval j.

Each run is also predicted by the same fit without it, in closed form (ridge/leave_run_out.py); s_j and the
centre of x are those of all runs. A prior prediction (prior.py) is subtracted from g(L) first and added again
at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.links import unlink
from simfluence.ridge import leave_run_out
from simfluence.simulators.effects.data import TrainingData
from simfluence.simulators.effects.grid import smooth
from simfluence.simulators.effects.model import (
    INITIAL_ORDERS,
    SCORE_ORDERS,
    EffectsModel,
    EffectsSettings,
    legendre,
    progress_basis,
)
from simfluence.simulators.effects.prior import PriorPrediction

Array = npt.NDArray[np.float64]

DRIFT_VARIANCE = 100.0
"""Prior variance of μ relative to all effects together: as good as free, and well conditioned."""


@dataclass(frozen=True)
class OutOfFold:
    """Each training run as predicted by the fit without it: losses [point, test]; and their mean squared
    error.
    """

    predicted: list[Array]
    error: float


@dataclass(frozen=True)
class EffectsRegression:
    """The regression on some runs under some settings, to be solved for any penalty.

    use_weights : [use] of each run, what a use of an example counts; None is 1.
    """

    data: TrainingData
    settings: EffectsSettings
    prior: PriorPrediction | None = None
    use_weights: Sequence[Array] | None = None

    # ----------------------------------------------------------------------------- what is regressed

    @cached_property
    def levels(self) -> list[Array]:
        """g(L) less the prior prediction, one [point, test] a run."""
        levels = self.data.levels(self.settings.link)
        if self.prior is None:
            return levels
        return [level - known for level, known in zip(levels, self.prior.runs, strict=True)]

    @cached_property
    def increments(self) -> Array:
        """float [row, test]"""
        return np.concatenate([np.diff(level, axis=0) for level in self.levels])

    @property
    def intervals(self) -> int:
        """The number of intervals of the grid."""
        return len(self.data.recorded.grid) - 1

    @property
    def total(self) -> int:
        """The steps of the longest run."""
        return int(self.data.recorded.grid[-1])

    @cached_property
    def interval(self) -> npt.NDArray[np.int64]:
        """int [row]"""
        return self.data.recorded.interval

    @cached_property
    def lengths(self) -> Array:
        """float [row]: the steps of each row's interval."""
        return np.diff(self.data.recorded.grid).astype(np.float64)[self.interval]

    @cached_property
    def middle(self) -> Array:
        """float [row]: the step that stands for an interval, counted from 1."""
        grid = self.data.recorded.grid
        return ((grid[1:] + grid[:-1] + 1) / 2)[self.interval]

    @cached_property
    def basis(self) -> Array:
        """φ [row, k]"""
        return progress_basis(self.middle, self.total, self.settings.decay)

    @cached_property
    def consumed(self) -> Array:
        """Σ m̂ [row, train]"""
        return np.concatenate(
            self.data.consumed(self.settings.momentum, self.settings.with_rates, self.use_weights)
        )

    @cached_property
    def center(self) -> Array:
        """float [train]: what the average step consumes."""
        return np.asarray(self.consumed.sum(0) / self.lengths.sum(), np.float64)

    @cached_property
    def centered(self) -> Array:
        """x [row, train]"""
        return self.consumed - self.lengths[:, None] * self.center

    @cached_property
    def scale(self) -> float:
        """Brings the rows of x to a mean square norm of 1."""
        size = np.square(self.centered).sum(1).mean()
        return float(1 / np.sqrt(size)) if size > 0 else 0.0

    @cached_property
    def known_columns(self) -> Array:
        """h [row, q, test]"""
        powers = legendre(self.middle, self.total)
        columns = []
        for scores in self.data.scores:
            predicted = self.centered @ scores
            columns += [predicted * powers[:, [k]] for k in range(SCORE_ORDERS)]
        if self.data.with_initial:
            start = np.stack([level[0] for level in self.levels])
            rows = [rows.stop - rows.start for rows in self.data.recorded.rows]
            deviation = np.repeat(start - start.mean(0), rows, axis=0) * self.lengths[:, None]
            columns += [deviation * powers[:, [k]] for k in range(INITIAL_ORDERS)]
        if not columns:
            return np.empty((len(self.increments), 0, self.increments.shape[1]))
        return np.stack(columns, axis=1)

    # -------------------------------------------------------------------------------------- whitening

    @cached_property
    def spread(self) -> Array:
        """s [interval]: the spread of increments between runs, smoothed, with mean square 1."""
        runs = np.bincount(self.interval, minlength=self.intervals).astype(np.float64)
        mean = self._by_interval(self.increments) / runs[:, None]
        squares = np.square(self.increments - mean[self.interval]).mean(1, keepdims=True)
        variance = self._by_interval(squares)[:, 0] / np.maximum(runs - 1, 1e-9)
        known = (runs > 1) & (variance > 0)
        if not known.any():
            return np.ones(self.intervals)
        at = np.arange(self.intervals)
        log = np.interp(at, at[known], np.log(variance[known]))
        variance = np.exp(smooth(log, max(self.intervals // 6, 1)))
        return np.sqrt(variance / variance.mean())

    @cached_property
    def whitener(self) -> sparse.csr_array:
        """W [row, row]: (1 − κ·lag) of rows / s within each run, so that W ε is white."""
        inverse = 1 / self.spread[self.interval]
        lagged = -self.settings.noise_correlation * inverse[:-1]
        lagged[[rows.start - 1 for rows in self.data.recorded.rows[1:]]] = 0.0
        diagonals: list[Any] = [inverse, lagged]
        return sparse.diags_array(diagonals, offsets=[0, -1]).tocsr()

    def whiten(self, rows: Array) -> Array:
        """W rows, over the first axis."""
        return np.asarray((self.whitener @ rows.reshape(len(rows), -1)).reshape(rows.shape), np.float64)

    def unwhiten(self, rows: Array) -> Array:
        """W⁻¹ rows of one run, from its first row: e_j = κ e_{j-1} + row_j, times s_j."""
        from scipy.signal import lfilter  # takes long to import, and only fits need it

        carried = lfilter([1.0], [1.0, -self.settings.noise_correlation], rows, axis=0)
        return np.asarray(carried * self.spread[: len(rows), None], np.float64)

    # -------------------------------------------------------------------------------------- solving

    @cached_property
    def problem(self) -> leave_run_out.Problem:
        """The whitened regression. Its columns are x φ_k for every k, and the drift's with a prior variance
        of their own.

        Where there are more columns than rows, the kernel (the covariance of the rows) is made instead.
        """
        x = self.centered * self.scale
        design = kernel = None
        if self.basis.shape[1] * x.shape[1] + self.intervals < len(x):
            drift = (self.interval[:, None] == np.arange(self.intervals)).astype(np.float64)
            columns = [phi[:, None] * x for phi in self.basis.T] + [np.sqrt(DRIFT_VARIANCE) * drift]
            design = self.whiten(np.concatenate(columns, axis=1))
        else:
            kernel = x @ x.T
            kernel *= self.basis @ self.basis.T
            kernel[self.interval[:, None] == self.interval] += DRIFT_VARIANCE
            kernel = self.whiten(self.whiten(kernel).T)
        return leave_run_out.Problem(
            design,
            kernel,
            self.whiten(self.increments),
            self.whiten(self.known_columns),
            self.data.recorded.rows,
        )

    def solve(self, penalty: float, leave_out: bool = True) -> EffectsFit:
        """The fit for λ = penalty (inf: the mean trajectory).

        Without ``leave_out``, and of a single run, nothing is predicted out of fold, and the model is not
        calibrated.
        """
        several = leave_out and len(self.levels) > 1
        if np.isinf(penalty):
            return self._without_effects(several)
        return self.fit_of(leave_run_out.solve(self.problem, penalty, leave_out=several), several)

    def fit_of(self, solution: leave_run_out.Solution, several: bool) -> EffectsFit:
        """The fit with this solution; ``several`` : whether it holds residuals of runs that were left out."""
        if not several:
            return EffectsFit(self, solution, np.ones(self.intervals + 1), None)
        rollouts = []
        for rows_of, level in zip(self.data.recorded.rows, self.levels, strict=True):
            residual = np.cumsum(self.unwhiten(solution.left_out[rows_of]), axis=0)
            rollouts.append(np.concatenate([level[:1], level[1:] - residual]))
        return EffectsFit(self, solution, *self.calibrated(rollouts))

    def _without_effects(self, several: bool) -> EffectsFit:
        """The mean trajectory, also of a run that starts from other losses."""
        out_of_fold = None
        if several:
            runs = range(len(self.levels))
            out_of_fold = self._predicted([self._mean_trajectory(without=run) for run in runs])
        return EffectsFit(self, None, np.zeros(self.intervals + 1), out_of_fold)

    def model(self, solution: leave_run_out.Solution | None, calibration: Array) -> EffectsModel:
        """The model of a solution; of none, without effects."""
        average = self._mean_trajectory()
        tests = average.shape[1]
        if solution is None:
            effects = np.zeros((self.basis.shape[1], self.data.shape[0], tests))
            coefficients, drift = np.zeros((self.known_columns.shape[1], tests)), np.diff(average, axis=0)
        else:
            effects, drift = self.effects_and_drift(solution)
            coefficients = solution.coefficients
        return EffectsModel(
            settings=self.settings,
            effects=effects,
            center=self.center,
            batch_size=self.data.batch_size,
            scores=self.data.scores,
            coefficients=coefficients,
            drift=drift,
            grid=self.data.recorded.grid,
            average=average,
            initial=np.stack([level[0] for level in self.levels]).mean(0),
            calibration=calibration,
            prior_average=self.prior.average if self.prior else np.empty((0, tests)),
            prior_slope=self.prior.slope if self.prior else np.empty(0),
        )

    def effects_and_drift(self, solution: leave_run_out.Solution) -> tuple[Array, Array]:
        """(B [k, train, test], μ [interval, test])"""
        dual = self.whitener.T @ solution.dual
        rows = self.centered * self.scale**2
        effects = np.stack([rows.T @ (phi[:, None] * dual) for phi in self.basis.T])
        return effects, DRIFT_VARIANCE * self._by_interval(dual)

    def _mean_trajectory(self, without: int | None = None) -> Array:
        """The mean start and the mean increments of the runs, added up, [point, test].

        A mean of the levels themselves would jump where a run ends. ``without`` leaves a run out and gives
        the mean of the others at its points; where that run goes on alone, it stands still.
        """
        others = [number for number in range(len(self.levels)) if number != without]
        start = np.mean([self.levels[number][0] for number in others or range(len(self.levels))], axis=0)
        total, runs = self._by_interval(self.increments), np.bincount(self.interval, minlength=self.intervals)
        if without is not None:
            rows = self.data.recorded.rows[without]
            total, runs = (
                total[: rows.stop - rows.start] - self.increments[rows],
                runs[: rows.stop - rows.start] - 1,
            )
        drift = np.where(runs[:, None] > 0, total / np.maximum(runs, 1)[:, None], 0.0)
        return np.concatenate([start[None], start + np.cumsum(drift, axis=0)])

    def _by_interval(self, rows: Array) -> Array:
        """Sums over the rows of each interval, [interval, …]."""
        sums = np.zeros((self.intervals, *rows.shape[1:]))
        for rows_of in self.data.recorded.rows:
            sums[: rows_of.stop - rows_of.start] += rows[rows_of]
        return sums

    # ----------------------------------------------------------------------------------- calibrating

    def calibrated(self, rollouts: list[Array]) -> tuple[Array, OutOfFold]:
        """c [point], and the out-of-fold predictions: deviations from the mean trajectory, multiplied by what
        predictions of runs without them show.

        c_j = Σ d̂ d / Σ d̂² over runs and test examples, with d̂ the predicted and d the true deviation from
        the mean of the other runs at point j; the sums are smoothed over points, and c is drawn to 1 by the
        weight of one run.
        """
        points, runs = len(self.data.recorded.grid), len(rollouts)
        product, square = np.zeros(points), np.zeros(points)
        others = [self._mean_trajectory(without=number) for number in range(runs)]
        for rollout, level, mean in zip(rollouts, self.levels, others, strict=True):
            product[: len(level)] += ((rollout - mean) * (level - mean)).sum(1)
            square[: len(level)] += np.square(rollout - mean).sum(1)
        window = max(points // 6, 1)
        product, square = smooth(product[1:], window), smooth(square[1:], window)
        extra = square / runs
        tiny = 1e-12 * max(square.max(), 1e-300)
        slope = np.clip((product + extra) / np.maximum(square + extra, tiny), 0.0, 2.0)
        calibration = np.concatenate([[1.0], slope])
        rollouts = [
            mean + calibration[: len(mean), None] * (rollout - mean)
            for rollout, mean in zip(rollouts, others, strict=True)
        ]
        return calibration, self._predicted(rollouts)

    def _predicted(self, levels: list[Array]) -> OutOfFold:
        """What these levels [point, test] of the training runs are as losses; the first are the true ones."""
        predicted, errors = [], []
        known = self.prior.out_of_fold if self.prior else [np.zeros(1)] * len(levels)
        for level, ahead, true in zip(levels, known, self.data.recorded.losses, strict=True):
            losses = unlink(level + ahead, self.settings.link)
            losses[0] = true[0]
            predicted.append(losses)
            errors.append(np.square(losses - true)[1:])
        return OutOfFold(predicted, float(np.concatenate(errors).mean()))


@dataclass(frozen=True)
class EffectsFit:
    """A regression solved for one λ; its model is made when it is asked for.

    out_of_fold : None of a single run, or if not asked for.
    """

    regression: EffectsRegression
    solution: leave_run_out.Solution | None
    calibration: Array
    out_of_fold: OutOfFold | None

    @cached_property
    def model(self) -> EffectsModel:
        """The fitted model."""
        return self.regression.model(self.solution, self.calibration)
