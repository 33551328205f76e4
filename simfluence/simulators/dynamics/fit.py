"""The few numbers of a dynamics that effects leave open, by nonlinear least squares.

    Σ_{r,t,z} (L̂ − L)² / Σ (L̄ − L)² + mean (Δ log γ)² / 10 + (Δκ² + Δβ²) / 100
        + max(1, 15 / (R − 1)) · (mean (Δ log α)² + mean (log α)² / 10 + q² / 100 + 3 η² / 1000)

L̂ are the dynamics's losses, shifted to have the same mean over the training runs as L; log γ is linear
between knots in log time, log α in time, Δ from knot to knot. Fewer runs, R, say less of a kernel that
changes. Δκ and Δβ are what log κ and logit β differ by from ½ log(n/m) (singular values are shared between u
and v, but the gradients of n training and m test examples are of equal length) and from the recorded β. The
derivatives by these few numbers are finite differences.

Deviations from the mean say little of few runs, and nothing of one. Where effects are scores, which know
nothing of the runs, whole curves are predicted_now from the losses before the first step, L̂': of R < 4 runs the first
term counts (R − 1) / R, and Σ (L̂' − L)² / Σ (L_0 − L)² counts 1/R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.special import expit, logit

from simfluence.curriculum import Curriculum
from simfluence.simulators.dynamics.model import Batches, TrainingDynamics
from simfluence.simulators.effects.fitting import FEWEST_RUNS
from simfluence.simulators.effects.model import link, unlink

Array = npt.NDArray[np.float64]

KNOTS = 13  # of log γ
KEPT_KNOTS = 5  # of log α
ROUGHNESS, TRUST = 0.1, 0.01
KEPT_ROUGHNESS, KEPT_TRUST, POWER_TRUST, GROWTH_TRUST = 1.0, 0.1, 0.01, 0.003
ENOUGH_RUNS = 16  # for these weights; they were set there
_LEVELS = np.arange(-6.0, 6.5, 1.0)  # of log γ to start from
_MOMENTUM = (0.02, 0.98)
_PARTS = (4, 4 + KNOTS)  # where log γ and log α begin, after log κ, logit β, η and q
_CHANGING = np.r_[2:4, _PARTS[1] : _PARTS[1] + KEPT_KNOTS]  # η, q and log α


def fit_dynamics(
    effects: Array,
    curricula: Sequence[Curriculum],
    losses: Sequence[Array],
    grid: npt.NDArray[np.int64],
    *,
    momentum: float,
    corrected: bool,
    rates: Array,
    changing: bool,
    near: TrainingDynamics | None = None,
) -> TrainingDynamics:
    """The dynamics with these effects that is nearest to recorded runs.

    Parameters
    ----------
    effects : B [train, test] on log(eᴸ − 1), negative lowers the loss; any units.
    losses : one [point, test] a run, at the steps ``grid`` up to its end; finite, positive.
    momentum, corrected : the optimizer's (momentum.py). rates : relative learning rates [step].
    changing : whether α, η and q are fitted, or 1, 0 and 0: effects that were found in the same runs tell
        these runs too well, and a kernel that changes with them goes astray on others.
    near : one fitted to the same runs with similar effects, to start from.
    """
    curves = _Curves(losses, len(grid), whole=changing)
    steps = np.minimum(np.arange(int(grid[-1])), len(rates) - 1)
    form = _Form(effects, rates[steps], momentum, corrected, curves.start, curves.level)
    few = max(1.0, (ENOUGH_RUNS - 1) / max(len(losses) - 1, 1))
    batches = Batches.of(curricula)

    def residuals(parameters: Array) -> Array:
        wrong = curves.wrong(form.dynamics(parameters).moved(batches, grid))
        return np.concatenate([wrong, form.penalties(parameters, few)])

    starts = form.starts() if near is None else [form.parameters(near)]
    first = min(starts, key=lambda parameters: float(np.square(residuals(parameters)).sum()))
    free = np.full(len(first), True)
    free[_CHANGING] = changing

    def whole(some: Array) -> Array:
        parameters = first.copy()
        parameters[free] = some
        return parameters

    def residuals_of(some: Array) -> Array:
        return residuals(whole(some))

    found = least_squares(residuals_of, first[free], xtol=1e-6, ftol=1e-6, gtol=1e-8, max_nfev=60).x
    return anchored(form.dynamics(whole(found)), curricula, losses, grid)


def misfit(
    dynamics: TrainingDynamics,
    curricula: Sequence[Curriculum],
    losses: Sequence[Array],
    grid: npt.NDArray[np.int64],
) -> float:
    """What is squared of the losses in the objective: 0 is predicted_now, 1 nothing; of a dynamics of scores."""
    wrong = _Curves(losses, len(grid), whole=True).wrong(dynamics.moved(Batches.of(curricula), grid))
    return float(np.square(wrong).sum())


class _Curves:
    """Recorded losses, and how wrong it is that log(eᴸ − 1) changes so.

    level : its mean over the runs [point, test]. start : f_0.
    whole : whether the curves of few runs are to be predicted_now too.
    """

    def __init__(self, losses: Sequence[Array], points: int, whole: bool) -> None:
        self.true, self.reached = _padded(losses, points)
        runs = len(losses)
        self.share = 1 / runs if whole and runs < FEWEST_RUNS else 0.0
        self.level, self.average = self._mean(link(self.true, "log_odds")), self._mean(self.true)
        self.first = link(self.true[:, :1], "log_odds")
        self.start = -float(link(self.average[0].mean(), "log_odds"))
        self.spread = self._size(self.true - self.average)
        self.grown = self._size(self.true - self.true[:, :1])

    def wrong(self, change: Array) -> Array:
        """change : [run, point, test]. Flat; its squares add up to the objective's part."""
        predicted_now = unlink(self.level + change - self._mean(change), "log_odds")
        apart = (
            self._known(predicted_now - self._mean(predicted_now) + self.average - self.true) / self.spread
        )
        if not self.share:
            return apart
        along = self._known(unlink(self.first + change, "log_odds") - self.true) / self.grown
        return np.concatenate([np.sqrt(1 - self.share) * apart, np.sqrt(self.share) * along])

    def _mean(self, values: Array) -> Array:
        return _mean(values, self.reached)

    def _known(self, values: Array) -> Array:
        """Those after the start and before a run's end, flat; 0 where there are none."""
        return np.where(self.reached, values, 0.0)[:, 1:].ravel()

    def _size(self, values: Array) -> float:
        return float(np.sqrt(np.square(self._known(values)).sum())) or 1.0


class _Form:
    """Training dynamics with these effects by their parameters: log κ, logit β, η, q, log γ and log α at knots.

    rates : relative ones [step]. start : f_0. level : what their ``average`` is until they are anchored.
    """

    def __init__(
        self, effects: Array, rates: Array, momentum: float, corrected: bool, start: float, level: Array
    ) -> None:
        unit = np.sqrt(np.square(effects).mean()) or 1.0
        left, values, right = np.linalg.svd(-effects / unit, full_matrices=False)
        self.train, self.test = (np.ascontiguousarray(side * np.sqrt(values)) for side in (left, right.T))
        self.sizes = np.maximum(values / (np.sqrt(np.square(values).mean()) or 1.0), 1e-12)
        self.rates, self.corrected, self.start, self.level = rates, corrected, start, level
        self.log_time = np.log1p(np.arange(len(rates))) / max(np.log1p(len(rates) - 1), 1e-12)
        self.time = np.linspace(0, 1, len(rates))
        self.rate_hats, self.kept_hats = _hats(self.log_time, KNOTS), _hats(self.time, KEPT_KNOTS)
        feedback = 0.5 * np.log(effects.shape[0] / effects.shape[1])
        self.usual = np.array([feedback, logit(np.clip(momentum, *_MOMENTUM)), 0.0, 0.0])

    def dynamics(self, parameters: Array) -> TrainingDynamics:
        (feedback, beta, growth, power), gamma, alpha = np.split(parameters, _PARTS)
        stretched = self.sizes**power
        return TrainingDynamics(
            self.train * stretched,
            self.test * stretched,
            self.rates * np.exp(self.rate_hats @ gamma),
            np.exp(self.kept_hats @ alpha),
            momentum=float(expit(beta)),
            corrected=self.corrected,
            feedback=float(np.exp(feedback)),
            growth=float(growth),
            power=float(power),
            start=self.start,
            average=self.level,
        )

    def penalties(self, parameters: Array, few: float) -> Array:
        """What is squared in the objective beside the losses; few : max(1, 15 / (R − 1))."""
        numbers, gamma, alpha = np.split(parameters, _PARTS)
        trust = np.sqrt([TRUST, TRUST, few * GROWTH_TRUST, few * POWER_TRUST])
        return np.concatenate(
            [
                trust * (numbers - self.usual),
                np.sqrt(ROUGHNESS / (KNOTS - 1)) * np.diff(gamma),
                np.sqrt(few * KEPT_ROUGHNESS / (KEPT_KNOTS - 1)) * np.diff(alpha),
                np.sqrt(few * KEPT_TRUST / KEPT_KNOTS) * alpha,
            ]
        )

    def starts(self) -> list[Array]:
        """The usual numbers, and γ of several sizes."""
        still = np.zeros(KEPT_KNOTS)
        return [np.concatenate([self.usual, np.full(KNOTS, log_rate), still]) for log_rate in _LEVELS]

    def parameters(self, near: TrainingDynamics) -> Array:
        """Those of a dynamics."""
        numbers = [np.log(near.feedback), logit(near.momentum), near.growth, near.power]
        trained = self.rates > 0
        log_rates = np.log(near.rates[trained] / self.rates[trained])
        gamma = np.interp(np.linspace(0, 1, KNOTS), self.log_time[trained], log_rates)
        alpha = np.interp(np.linspace(0, 1, KEPT_KNOTS), self.time, np.log(near.kept))
        return np.concatenate([numbers, gamma, alpha])


def _hats(positions: Array, knots: int) -> Array:
    """What is linear between ``knots`` even ones on [0, 1], [position, knot]."""
    return np.stack([np.interp(positions, np.linspace(0, 1, knots), hat) for hat in np.eye(knots)], axis=1)


def anchored(
    dynamics: TrainingDynamics,
    curricula: Sequence[Curriculum],
    losses: Sequence[Array],
    grid: npt.NDArray[np.int64],
) -> TrainingDynamics:
    """The dynamics that tells these runs with the mean log-odds that they have; arguments as above."""
    true, reached = _padded(losses, len(grid))
    moved = dynamics.moved(Batches.of(curricula), grid)
    left_over = _mean(link(true, "log_odds") - moved, reached)
    steps = np.arange(grid[-1] + 1)
    return replace(
        dynamics, average=np.stack([np.interp(steps, grid, column) for column in left_over.T], axis=1)
    )


def _padded(losses: Sequence[Array], points: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Losses [run, point, test], after a run's end its last; which points were reached [run, point, 1]."""
    reached = np.arange(points) < np.array([len(run) for run in losses])[:, None]
    padded = [np.pad(run, ((0, points - len(run)), (0, 0)), mode="edge") for run in losses]
    return np.stack(padded), reached[..., None]


def _mean(values: Array, reached: npt.NDArray[np.bool_]) -> Array:
    """Over the runs that reached a point, [point, test]."""
    return np.asarray(np.where(reached, values, 0.0).sum(0) / np.maximum(reached.sum(0), 1), np.float64)
