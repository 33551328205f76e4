"""The regression behind the deviation simulators: what curricula change about loss increments.

In the space of a link g (the identity, or log(eᴸ − 1), the log-odds of a loss −log p), over the
intervals j of a grid of steps (design.py), for each test example z:

    g(L_j) − g(L_{j-1}) = μ_j(z) + Σ_i x_{j,i} B_i(z, j) + Σ_q h_{j,q}(z) c_q(z) + ε_j(z)

    μ_j(z)     the drift: what happens in every run; a free value per interval, hardly penalised
    x_j        features of the curriculum (blocks.py), centred on the average recorded batch
    B_i(z, j)  their effects, smooth in training progress: Σ_k φ_k(j) b_{k,i}(z), b ~ N(0, 1)
    h_j(z)     the means: Σ_i x_{j,i} S_i(z) P_k for every array of attribution scores S, and
               (L_0(z) − mean L_0(z)) P_k where initial losses differ between runs; P_k Legendre
    ε_j(z)     noise with the optimizer's momentum, ε_j = κ ε_{j-1} + s_j η_j, η white of variance λ

Effects are on *increments* and add up: nothing is fed back, so a rollout is a sum and cannot explode,
and the regression is on noise that is white once (1 − κ·lag)/s_j is applied to both sides. s_j is the
spread of increments between runs at that step. All hyperparameters are chosen by leave-one-run-out
rollouts, exact up to s_j and the centring, which are those of all runs (leave_run_out.py). What is predicted_before
otherwise is taken off g(L) beforehand and added again at the end (prior.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from simfluence.ridge import leave_run_out
from simfluence.runs import RunSet
from simfluence.simulators.effects.features import Features, progress_basis
from simfluence.simulators.effects.grid import Recorded, smooth, sum_over_intervals
from simfluence.simulators.effects.model import INITIAL_ORDERS, SCORE_ORDERS, Model, legendre, link, unlink
from simfluence.simulators.effects.prior import PriorPrediction

Array = npt.NDArray[np.float64]

DRIFT_VARIANCE = 100.0  # of μ relative to all effects together: as good as free, and well conditioned


@dataclass(frozen=True)
class OutOfFold:
    """Leave-one-run-out rollouts: one float [point, test] a run, losses; and their mean squared error."""

    predicted: list[Array]
    error: float


@dataclass(frozen=True)
class Regression:
    """Runs, features and settings, ready to be solved for any penalty.

    scores : float [array, train, test]; may be empty. with_initial : whether L_0 is a mean.
    prior : what is taken off g(L) first, or None.
    """

    recorded: Recorded
    features: Features
    row_features: Array
    scores: Array
    with_initial: bool
    noise_correlation: float
    decay: float
    link: str
    prior: PriorPrediction | None = None

    @classmethod
    def of(
        cls,
        train: RunSet,
        recorded: Recorded,
        features: Features,
        scores: Array,
        *,
        with_initial: bool,
        noise_correlation: float,
        decay: float,
        link: str,
        prior: PriorPrediction | None = None,
        weights: Sequence[Array] | None = None,
    ) -> Regression:
        """The regression on recorded runs; weights of uses, one [use] a run."""
        rows = [
            sum_over_intervals(
                features(run.curriculum, weights[number] if weights else None), recorded.grid[: len(losses)]
            )
            for number, (run, losses) in enumerate(zip(train, recorded.losses, strict=True))
        ]
        features_of_rows = np.concatenate(rows)
        return cls(
            recorded, features, features_of_rows, scores, with_initial, noise_correlation, decay, link, prior
        )

    # ----------------------------------------------------------------------------- what is regressed

    @cached_property
    def losses(self) -> list[Array]:
        """g(L) less the prior, one [point, test] a run."""
        levels = [link(losses, self.link) for losses in self.recorded.losses]
        if self.prior is None:
            return levels
        return [level - known for level, known in zip(levels, self.prior.runs, strict=True)]

    @cached_property
    def increments(self) -> Array:
        return np.concatenate([np.diff(losses, axis=0) for losses in self.losses])

    @cached_property
    def lengths(self) -> Array:
        """float [row]: the steps of each row's interval."""
        return np.diff(self.recorded.grid).astype(np.float64)[self.recorded.interval]

    @cached_property
    def middle(self) -> Array:
        """float [row]: the step that stands for an interval, counted from 1."""
        grid = self.recorded.grid
        return ((grid[1:] + grid[:-1] + 1) / 2)[self.recorded.interval]

    @property
    def total(self) -> int:
        """The steps of the longest run."""
        return int(self.recorded.grid[-1])

    @cached_property
    def center(self) -> Array:
        return self.row_features.sum(0) / self.lengths.sum()

    @cached_property
    def centered(self) -> Array:
        return self.row_features - self.lengths[:, None] * self.center

    @cached_property
    def scale(self) -> Array:
        """float [column]: brings the rows of each block to mean square norm 1."""
        squares = np.square(self.centered).mean(0)
        start, scale = 0, np.empty_like(squares)
        for width in self.features.widths:
            part = slice(start, start + width)
            scale[part] = 1 / np.sqrt(max(squares[part].sum(), 1e-300)) if squares[part].any() else 0.0
            start += width
        return scale

    @cached_property
    def means(self) -> Array:
        """h [row, q, test]"""
        columns = []
        powers = legendre(self.middle, self.total)
        if len(self.scores):
            examples = self.centered[:, : self.features.n_train]
            for scores in self.scores:
                predicted = examples @ scores
                columns += [predicted * powers[:, [k]] for k in range(SCORE_ORDERS)]
        if self.with_initial:
            start = np.stack([losses[0] for losses in self.losses])
            deviation = np.repeat(start - start.mean(0), [s.stop - s.start for s in self.recorded.runs], 0)
            deviation = deviation * self.lengths[:, None]
            columns += [deviation * powers[:, [k]] for k in range(INITIAL_ORDERS)]
        if not columns:
            return np.empty((len(self.increments), 0, self.increments.shape[1]))
        return np.stack(columns, axis=1)

    @cached_property
    def spread(self) -> Array:
        """s [interval]: the spread of increments between runs, smoothed, mean square 1."""
        interval, count = self.recorded.interval, len(self.recorded.grid) - 1
        per_interval = np.bincount(interval, minlength=count).astype(np.float64)
        mean = _by_interval(self.increments, interval, count) / per_interval[:, None]
        squares = np.square(self.increments - mean[interval]).mean(1, keepdims=True)
        freedom = np.maximum(per_interval - 1, 1e-9)
        variance = _by_interval(squares, interval, count)[:, 0] / freedom
        known = (per_interval > 1) & (variance > 0)
        if not known.any():
            return np.ones(count)
        at = np.arange(count)
        log = np.interp(at, at[known], np.log(variance[known]))
        variance = np.exp(smooth(log, max(count // 6, 1)))
        return np.sqrt(variance / variance.mean())

    # -------------------------------------------------------------------------------------- solving

    @cached_property
    def problem(self) -> leave_run_out.Problem:
        """Everything whitened: (1 − κ·lag) of the rows divided by s, within each run."""
        rows = self.centered * self.scale
        basis = progress_basis(self.middle, self.total, self.decay)
        interval = self.recorded.interval
        kernel = (rows @ rows.T) * (basis @ basis.T)
        kernel += DRIFT_VARIANCE * (interval[:, None] == interval[None])
        kernel = self.whiten(self.whiten(kernel).T)
        means = self.means
        return leave_run_out.Problem(
            kernel, self.whiten(self.increments), self.whiten(means), self.recorded.runs
        )

    def whiten(self, rows: Array) -> Array:
        """(1 − κ·lag) rows / s, over the first axis, run by run."""
        scaled = rows / self.spread[self.recorded.interval].reshape(-1, *([1] * (rows.ndim - 1)))
        lagged = np.zeros_like(scaled)
        lagged[1:] = scaled[:-1]
        lagged[[rows_of.start for rows_of in self.recorded.runs]] = 0.0
        return scaled - self.noise_correlation * lagged

    def whiten_transposed(self, rows: Array) -> Array:
        """Wᵀ rows, where W is the matrix of ``whiten``."""
        following = np.zeros_like(rows)
        following[:-1] = rows[1:]
        following[[rows_of.stop - 1 for rows_of in self.recorded.runs]] = 0.0
        return (rows - self.noise_correlation * following) / self.spread[self.recorded.interval][:, None]

    def unwhiten(self, rows: Array) -> Array:
        """W⁻¹ rows of one run, from its first row."""
        result = np.empty_like(rows)
        carried = np.zeros(rows.shape[1:])
        for j, row in enumerate(rows):
            carried = self.noise_correlation * carried + row
            result[j] = carried * self.spread[j]
        return result

    def solve(self, penalty: float, leave_out: bool = True) -> tuple[Model, OutOfFold | None]:
        """The model for λ = penalty (inf: the mean trajectory), and its leave-one-run-out rollouts.

        The second is None for a single run, or if not asked for; the model is then not calibrated.
        """
        several = leave_out and len(self.losses) > 1
        if np.isinf(penalty):
            return self._without_effects(several)
        solution = leave_run_out.solve(self.problem, penalty, leave_out=several)
        dual = self.whiten_transposed(solution.dual)
        basis = progress_basis(self.middle, self.total, self.decay)
        rows = self.centered * self.scale
        effects = np.stack([rows.T @ (phi[:, None] * dual) for phi in basis.T])
        count = len(self.recorded.grid) - 1
        drift = DRIFT_VARIANCE * _by_interval(dual, self.recorded.interval, count)
        model = replace(
            self._empty_model(), effects=effects, mean_coefficients=solution.mean_coefficients, drift=drift
        )
        if not several:
            return model, None
        residuals = [np.cumsum(self.unwhiten(solution.left_out[r]), axis=0) for r in self.recorded.runs]
        rollouts = [
            np.concatenate([losses[:1], losses[1:] - residual])
            for losses, residual in zip(self.losses, residuals, strict=True)
        ]
        return self._calibrated(model, rollouts)

    def _without_effects(self, several: bool) -> tuple[Model, OutOfFold | None]:
        model = self._empty_model()
        if not several:
            return replace(model, calibration=np.zeros_like(model.calibration)), None
        rollouts = []
        for number, losses in enumerate(self.losses):
            others = self._average_without(number)
            rollouts.append(losses[0] - others[0] + others)
        return self._calibrated(model, rollouts)

    def _empty_model(self) -> Model:
        average = self._average()
        tests = average.shape[1]
        orders = progress_basis(self.middle[:1], self.total, self.decay).shape[1]
        return Model(
            effects=np.zeros((orders, self.row_features.shape[1], tests)),
            mean_coefficients=np.zeros((self.means.shape[1], tests)),
            drift=np.diff(average, axis=0),
            center=self.center,
            scale=self.scale,
            average=average,
            calibration=np.ones(len(average)),
            initial=np.stack([losses[0] for losses in self.losses]).mean(0),
            predicted_before=self.prior.average if self.prior else np.empty((0, tests)),
            slope=self.prior.slope if self.prior else np.empty(0),
        )

    # ----------------------------------------------------------------------------------- calibrating

    def _calibrated(self, model: Model, rollouts: list[Array]) -> tuple[Model, OutOfFold]:
        """Deviations from the mean trajectory are multiplied by what leave-one-run-out rollouts say.

        c_j = Σ d̂ d / Σ d̂² over runs and test examples, with d̂ the predicted and d the true deviation
        from the mean of the other runs at point j; sums are smoothed over points, and drawn to 1 by the
        weight of one run.
        """
        points, runs = len(self.recorded.grid), len(rollouts)
        product, square = np.zeros(points), np.zeros(points)
        others = [self._average_without(number) for number in range(runs)]
        for rollout, losses, mean in zip(rollouts, self.losses, others, strict=True):
            here = slice(0, len(losses))
            product[here] += ((rollout - mean) * (losses - mean)).sum(1)
            square[here] += np.square(rollout - mean).sum(1)
        window = max(points // 6, 1)
        product, square = smooth(product[1:], window), smooth(square[1:], window)
        extra = square / runs
        tiny = 1e-12 * max(square.max(), 1e-300)
        slope = np.clip((product + extra) / np.maximum(square + extra, tiny), 0.0, 2.0)
        calibration = np.concatenate([[1.0], slope])
        predicted, errors = [], []
        known = self.prior.out_of_fold if self.prior else [0.0 * mean for mean in others]
        for rollout, mean, ahead, true in zip(rollouts, others, known, self.recorded.losses, strict=True):
            factor = calibration[: len(rollout), None]
            predicted.append(unlink(mean + factor * (rollout - mean) + ahead, self.link))
            predicted[-1][0] = true[0]
            errors.append(np.square(predicted[-1] - true)[1:])
        return replace(model, calibration=calibration), OutOfFold(
            predicted, float(np.concatenate(errors).mean())
        )

    def _average(self) -> Array:
        """The mean trajectory, [point, test]: where few runs go on, by their mean increments."""
        interval, count = self.recorded.interval, len(self.recorded.grid) - 1
        runs = np.bincount(interval, minlength=count)
        drift = _by_interval(self.increments, interval, count) / runs[:, None]
        start = np.stack([losses[0] for losses in self.losses]).mean(0)
        return np.concatenate([start[None], start + np.cumsum(drift, axis=0)])

    def _average_without(self, number: int) -> Array:
        """The same of all runs but one, at that run's points; where it is alone, no more drift."""
        rows = self.recorded.runs[number]
        interval, count = self.recorded.interval, len(self.recorded.grid) - 1
        runs = np.bincount(interval, minlength=count)[: rows.stop - rows.start] - 1
        total = _by_interval(self.increments, interval, count)[: rows.stop - rows.start]
        drift = (total - self.increments[rows]) / np.maximum(runs, 1)[:, None] * (runs > 0)[:, None]
        start = np.stack([losses[0] for losses in self.losses])
        start = (start.sum(0) - start[number]) / max(len(start) - 1, 1)
        return np.concatenate([start[None], start + np.cumsum(drift, axis=0)])


def _by_interval(rows: Array, interval: npt.NDArray[np.int64], count: int) -> Array:
    """Sums over the rows of each interval, [interval, …]."""
    sums = np.zeros((count, *rows.shape[1:]))
    np.add.at(sums, interval, rows)
    return sums
