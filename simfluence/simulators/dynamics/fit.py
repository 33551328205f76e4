"""The few numbers of training dynamics that a kernel leaves open, by nonlinear least squares.

    Σ_{r,t,z} (L̂ − L)² / Σ (L̄ − L)² + mean (Δ log γ)² / 10 + (Δκ² + Δβ²) / 100
        + max(1, 15 / (R − 1)) · (mean (Δ log α)² + mean (log α)² / 10 + q² / 100 + 3 η² / 1000)

L̂ are the predicted losses, shifted to have the same mean over the R training runs as L. log γ is linear
between knots in log time, log α between knots in time, and Δ is the difference from knot to knot. Fewer runs
contain less about a kernel that changes. Δκ and Δβ are what log κ and logit β differ by from ½ log(n/m)
(singular values are shared between u and v, but gradients of n training and m test examples are of equal
length) and from the recorded β.

Deviations from the mean contain little in few runs, and nothing in one. Where the kernel is scores, which
were not taken from the runs, whole curves are predicted from the losses before the first step, L̂': of R < 4
runs the first term counts (R − 1)/R, and Σ (L̂' − L)² / Σ (L_0 − L)² counts 1/R.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from simfluence.kernels.arguments import ETA, POWER, RATES, Parameters
from simfluence.links import link, unlink
from simfluence.simulators.dynamics.model import TrainingDynamics, batches_of
from simfluence.simulators.effects.data import TrainingData
from simfluence.simulators.effects.grid import mean_over_runs, smooth
from simfluence.simulators.effects.momentum import Momentum

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RATE_KNOTS, KEPT_KNOTS = 13, 5
"""Knots of log γ and of log α."""
ROUGHNESS, TRUST = 0.1, 0.01
KEPT_ROUGHNESS, KEPT_TRUST, POWER_TRUST, GROWTH_TRUST = 1.0, 0.1, 0.01, 0.003
ENOUGH_RUNS = 16
"""With this many runs the penalties of a changing kernel count as stated; they were chosen there."""
POINTS = 16
"""Curves are compared at about that many steps."""
_LEVELS = np.arange(-6.0, 6.5, 1.0)  # of log γ to start from
_BETA = (0.02, 0.98)
_NUMBERS = RATES  # log κ, logit β, η and q stand before log γ and log α
_CHANGING = np.r_[ETA, POWER, _NUMBERS + RATE_KNOTS : _NUMBERS + RATE_KNOTS + KEPT_KNOTS]  # η, q and log α


@dataclass(frozen=True)
class Fitted:
    """Fitted dynamics with the numbers that were found.

    misfit : the share of what was to be explained that they leave. explained : of few runs and scores, the
        share R² of what is peculiar to these runs (:func:`explained_share`); otherwise 1.
    """

    dynamics: TrainingDynamics
    numbers: Array
    misfit: float
    explained: float


def fit_dynamics(
    effects: Array,
    data: TrainingData,
    *,
    changing: bool,
    whole: bool = False,
    start: Array | None = None,
    evaluations: int = 40,
) -> Fitted:
    """The training dynamics with this kernel that are nearest to the recorded runs.

    Parameters
    ----------
    effects : B [train, test] on log(eᴸ − 1), negative lowers the loss; any units.
    data : the runs; all losses must be above 0.
    changing : whether α, η and q are fitted, or are 1, 0 and 0. Effects that were found in the same runs
        predict these runs too well, and a kernel that changes with them goes astray on others.
    whole : of few runs and scores: whether curves are predicted as a whole too, and deviations from the runs
        multiplied by R, the root of the share that is explained.
    start : numbers found for a similar kernel or for similar runs, to start from.
    evaluations : the most that the least-squares solver may take.
    """
    from scipy.optimize import least_squares  # takes long to import, and only fits need it

    curves = _Curves(data, whole)
    family = _Family(effects, data, curves)
    free = np.full(_NUMBERS + RATE_KNOTS + KEPT_KNOTS, True)
    free[_CHANGING] = changing
    few = max(1.0, (ENOUGH_RUNS - 1) / max(len(data.train) - 1, 1))
    problem = _LeastSquares(family, curves, free, few)
    starts = [start] if start is not None else family.starts()
    first = min(starts, key=lambda numbers: float(np.square(problem.residuals_of(numbers)).sum()))
    problem.base = first
    highest = np.full(len(free), np.inf)
    highest[_NUMBERS + RATE_KNOTS :] = 0.0  # α ≤ 1: what was learnt does not grow by itself
    found = least_squares(
        problem.residuals,
        np.minimum(first, highest - 1e-3)[free],
        problem.jacobian,
        xtol=1e-5,
        ftol=1e-5,
        gtol=1e-8,
        max_nfev=evaluations,
        bounds=(-np.inf, highest[free]),
    )
    numbers = problem.whole(found.x)
    dynamics = family.dynamics(numbers)
    explained = 1.0
    if curves.share:
        # R² would be the best multiplier of single fluctuations. What adds up over a run holds less noise;
        # changes multiplied by R were nearer to the truth (analysis/LOG.md).
        explained = explained_share(dynamics, data)
        dynamics = replace(dynamics, test=np.sqrt(explained) * dynamics.test)
    misfit = float(np.square(curves.wrong(family.changed(numbers))).sum())
    return Fitted(anchored(dynamics, data), numbers, misfit, explained)


def anchored(dynamics: TrainingDynamics, data: TrainingData) -> TrainingDynamics:
    """The dynamics whose predictions of these runs have the mean log-odds that the runs have; and their mean
    γ.
    """
    grid, levels = data.recorded.grid, data.levels("log_odds")
    changed = dynamics.changed(batches_of(data.train.curricula), grid, data.run_rates)
    rest = mean_over_runs([level - own[: len(level)] for level, own in zip(levels, changed, strict=True)])
    steps = np.arange(grid[-1] + 1)
    average = np.stack([np.interp(steps, grid, column) for column in rest.T], axis=1)
    return replace(dynamics, average=average, usual=dynamics.mean_gamma(data.train.curricula, data.run_rates))


def explained_share(dynamics: TrainingDynamics, data: TrainingData) -> float:
    """The share of what is peculiar to few runs that dynamics explain, 0 … 1.

        R²(d, d̂) = (Σ d d̂)² / (Σ d² Σ d̂²),     0 if Σ d d̂ < 0

    d are fluctuations: increments of the recorded log(eᴸ − 1) from point to point less their moving average
    over a sixth of the run, d̂ the predicted ones. They depend on the batches of those very steps; a curve as
    a whole can be met by dynamics whose kernel is wrong. Where there are fewer points than four moving
    averages take, these do not follow the curve, and d is less its mean over test examples too. Of two or
    three runs it is the mean of this R² and that of their deviations from their mean. Where test examples are
    evaluated in turn, what is predicted is taken at the evaluations of each, as what was recorded is, and the
    moving average is over five of them at least.
    """
    grid, levels = data.recorded.grid, data.levels("log_odds")
    changed = dynamics.changed(batches_of(data.train.curricula), grid, data.run_rates)
    predicted = [
        data.recorded.as_known(run, own[: len(level)])
        for run, (own, level) in enumerate(zip(changed, levels, strict=True))
    ]
    window = max(round(5 * data.recorded.between), 5)
    fluctuations = [[_fluctuations(run, window) for run in runs] for runs in (levels, predicted)]
    shares = [_explained(*(np.concatenate(runs) for runs in fluctuations))]
    if len(levels) > 1:
        means = [mean_over_runs(runs) for runs in (levels, predicted)]
        deviations = [
            np.concatenate([run - mean[: len(run)] for run in runs])
            for runs, mean in zip((levels, predicted), means, strict=True)
        ]
        shares.append(_explained(*deviations))
    return float(np.mean(shares))


def _fluctuations(levels: Array, window: int) -> Array:
    increments = np.diff(levels, axis=0)
    own = np.asarray(increments - smooth(increments, max(len(levels) // 6, window)), np.float64)
    has_few, has_several_tests = len(levels) < 4 * window, own.shape[1] > 1
    return own - own.mean(1, keepdims=True) if has_few and has_several_tests else own


def _explained(true: Array, predicted: Array) -> float:
    size = np.square(true).sum() * np.square(predicted).sum()
    return float(max((true * predicted).sum(), 0.0) ** 2 / max(size, 1e-300))


class _LeastSquares:
    """Residuals and their Jacobian by the free numbers; ``base`` holds the fixed ones."""

    def __init__(self, family: _Family, curves: _Curves, free: npt.NDArray[np.bool_], few: float) -> None:
        self.family, self.curves, self.free, self.few = family, curves, free, few
        self.base = np.zeros(len(free))

    def whole(self, some: Array) -> Array:
        numbers = self.base.copy()
        numbers[self.free] = some
        return numbers

    def residuals(self, some: Array) -> Array:
        return self.residuals_of(self.whole(some))

    def residuals_of(self, numbers: Array) -> Array:
        wrong = self.curves.wrong(self.family.changed(numbers))
        return np.concatenate([wrong, self.family.penalties(numbers, self.few)])

    def jacobian(self, some: Array) -> Array:
        numbers = self.whole(some)
        changed, derivatives = self.family.derivatives(numbers, self.free)
        wrong = self.curves.derivatives_of_wrong(changed, derivatives)
        penalties = self.family.penalties_jacobian(self.few)[:, self.free]
        return np.concatenate([wrong, penalties])


class _Curves:
    """Recorded curves at some points of the grid, and how far predicted changes of log(eᴸ − 1) are from them.

    Padded arrays are [run, point, test]; ``known`` [run, point, 1] is whether a run reached a point, after
    the first.
    whole : whether curves are to be predicted as a whole too.
    """

    def __init__(self, data: TrainingData, whole: bool) -> None:
        grid = data.recorded.grid
        chosen = np.unique(np.round(np.linspace(0, len(grid) - 1, min(POINTS, len(grid)))).astype(np.int64))
        self.points: IntArray = grid[chosen]
        losses = [run[chosen[chosen < len(run)]] for run in data.recorded.losses]
        lengths = np.array([len(run) for run in losses])
        padded = [np.pad(run, ((0, len(chosen) - len(run)), (0, 0)), mode="edge") for run in losses]
        self.true = np.stack(padded)
        self.reached = (np.arange(len(chosen)) < lengths[:, None])[..., None]
        runs = len(losses)
        self.share = 1 / runs if whole else 0.0
        self.level, self.average = self._mean(link(self.true, "log_odds")), self._mean(self.true)
        self.first = link(self.true[:, :1], "log_odds")
        self.start = -float(link(self.average[0].mean(), "log_odds"))
        self.spread = self._size(self.true - self.average)
        self.grown = self._size(self.true - self.true[:, :1])

    def wrong(self, changed: Array) -> Array:
        """Flat residuals; their squares add up to the objective's part."""
        predicted = unlink(self.level + changed - self._mean(changed), "log_odds")
        apart = self._flat(predicted - self._mean(predicted) + self.average - self.true) / self.spread
        if not self.share:
            return apart
        along = self._flat(unlink(self.first + changed, "log_odds") - self.true) / self.grown
        return np.concatenate([np.sqrt(1 - self.share) * apart, np.sqrt(self.share) * along])

    def derivatives_of_wrong(self, changed: Array, derivatives: Array) -> Array:
        """The Jacobian of ``wrong`` [residual, number], from ∂changed [number, run, point, test]."""
        slope = expit(self.level + changed - self._mean(changed))
        moved = slope * (derivatives - self._mean(derivatives))
        apart = self._flat(moved - self._mean(moved)) / self.spread
        if not self.share:
            return apart.T
        along = self._flat(expit(self.first + changed) * derivatives) / self.grown
        return np.concatenate([np.sqrt(1 - self.share) * apart, np.sqrt(self.share) * along], axis=-1).T

    def _mean(self, values: Array) -> Array:
        """Over the runs that reached a point, [..., 1, point, test]."""
        count = np.maximum(self.reached.sum(0), 1)
        return np.asarray((values * self.reached).sum(-3, keepdims=True) / count, np.float64)

    def _flat(self, values: Array) -> Array:
        """Those after the start and before a run's end; 0 where there are none."""
        known = (values * self.reached)[..., 1:, :]
        return known.reshape(*known.shape[:-3], -1)

    def _size(self, values: Array) -> float:
        return float(np.sqrt(np.square(self._flat(values)).sum())) or 1.0


class _Family:
    """All training dynamics with one kernel, by their numbers: log κ, logit β, η, q, log γ and log α at
    knots.
    """

    def __init__(self, effects: Array, data: TrainingData, curves: _Curves) -> None:
        unit = np.sqrt(np.vdot(effects, effects) / effects.size) or 1.0
        left, values, right = np.linalg.svd(effects, full_matrices=False)  # a large array: not copied first
        values /= unit
        left *= -np.sqrt(values)
        self.train, self.test = np.ascontiguousarray(left), np.ascontiguousarray(right.T * np.sqrt(values))
        self.log_sizes = np.log(np.maximum(values / (np.sqrt(np.square(values).mean()) or 1.0), 1e-12))
        self.batches = batches_of(data.train.curricula)
        steps = int(self.batches.lengths.max())
        self.rates = data.run_rates
        self.bias_correction, self.curves = data.momentum.bias_correction, curves
        time = np.arange(steps)
        log_time = np.log1p(time) / max(np.log1p(steps - 1), 1e-12)
        self.rate_hats = _hats(log_time, RATE_KNOTS)
        self.kept_hats = _hats(time / max(steps - 1, 1), KEPT_KNOTS)
        feedback = 0.5 * np.log(effects.shape[0] / effects.shape[1])
        self.usual = np.array([feedback, logit(np.clip(data.momentum.beta, *_BETA)), 0.0, 0.0])

    def dynamics(self, numbers: Array) -> TrainingDynamics:
        """Those of these numbers; not anchored."""
        feedback, beta, growth, power = numbers[:_NUMBERS]
        gamma, alpha = np.split(numbers[_NUMBERS:], [RATE_KNOTS])
        return TrainingDynamics(
            train=self.train,
            test=self.test,
            metric=np.exp(2 * power * self.log_sizes),
            profile=np.exp(self.rate_hats @ gamma),
            kept=np.exp(self.kept_hats @ alpha),
            momentum=Momentum(float(expit(beta)), self.bias_correction),
            feedback=float(np.exp(feedback)),
            growth=float(growth),
            start=self.curves.start,
            average=np.empty((0, len(self.test))),
            usual=1.0,
        )

    def changed(self, numbers: Array) -> Array:
        """What training adds to log(eᴸ − 1), [run, point, test]."""
        return self.dynamics(numbers).changed(self.batches, self.curves.points, self.rates)

    def derivatives(self, numbers: Array, free: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
        """``changed``, and its derivatives by the free numbers [number, run, point, test]."""
        dynamics, log_metric = self.dynamics(numbers), 2 * self.log_sizes
        begins = np.concatenate(
            [np.zeros(_NUMBERS, np.int64), _first(self.rate_hats), _first(self.kept_hats)]
        )
        never = np.iinfo(np.int64).max
        parameters = Parameters(log_metric, self.rate_hats, self.kept_hats, np.where(free, begins, never))
        found, derivatives, _ = dynamics.train_along(self.batches, self.curves.points, self.rates, parameters)
        by_number = dynamics.on_test(derivatives[free])
        if free[POWER]:  # v has the power q too
            by_number[int(free[:POWER].sum())] += dynamics.on_test(found * log_metric)
        return dynamics.on_test(found), by_number

    def penalties(self, numbers: Array, few: float) -> Array:
        """What is squared in the objective beside the losses; few : max(1, 15 / (R − 1))."""
        usual = np.concatenate([self.usual, np.zeros(RATE_KNOTS + KEPT_KNOTS)])
        return np.asarray(self.penalties_jacobian(few) @ (numbers - usual), np.float64)

    @staticmethod
    def penalties_jacobian(few: float) -> Array:
        """The derivatives of ``penalties``, [penalty, number]."""
        trust = np.sqrt([TRUST, TRUST, few * GROWTH_TRUST, few * POWER_TRUST])
        total = _NUMBERS + RATE_KNOTS + KEPT_KNOTS
        eye = np.eye(total)
        gamma, alpha = eye[_NUMBERS : _NUMBERS + RATE_KNOTS], eye[_NUMBERS + RATE_KNOTS :]
        return np.concatenate(
            [
                trust[:, None] * eye[:_NUMBERS],
                np.sqrt(ROUGHNESS / (RATE_KNOTS - 1)) * np.diff(gamma, axis=0),
                np.sqrt(few * KEPT_ROUGHNESS / (KEPT_KNOTS - 1)) * np.diff(alpha, axis=0),
                np.sqrt(few * KEPT_TRUST / KEPT_KNOTS) * alpha,
            ]
        )

    def starts(self) -> list[Array]:
        """The usual numbers, and γ of several sizes."""
        return [
            np.concatenate([self.usual, np.full(RATE_KNOTS, log_rate), np.zeros(KEPT_KNOTS)])
            for log_rate in _LEVELS
        ]


def _hats(positions: Array, knots: int) -> Array:
    """Functions that are linear between ``knots`` even ones on [0, 1], [position, knot]."""
    return np.stack([np.interp(positions, np.linspace(0, 1, knots), hat) for hat in np.eye(knots)], axis=1)


def _first(hats: Array) -> IntArray:
    """The first step at which each function is not 0."""
    return np.where(hats.any(0), np.argmax(hats != 0, axis=0), len(hats))
