"""The few numbers of a surrogate that effects leave open: γ, κ and β, by nonlinear least squares.

    Σ_{r,t,z} (L̂ − L)² / Σ (L̄ − L)² + roughness · mean (Δ log γ)² + trust · (Δκ² + Δβ²)

L̂ are the surrogate's losses, shifted to have the same mean over the training runs as L; log γ is linear
between knots in log time. Δκ and Δβ are what log κ and logit β differ by from ½ log(n/m) (singular values
are shared between u and v, but the gradients of n training and m test examples are of equal length) and
from the recorded β. The derivatives by these few numbers are finite differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.special import expit, logit

from simfluence.curriculum import Curriculum
from simfluence.simulators.effects import link, unlink
from simfluence.simulators.surrogate import Batches, Surrogate

Array = npt.NDArray[np.float64]

KNOTS = 13
ROUGHNESS = 0.1
TRUST = 0.01
_LEVELS = np.arange(-6.0, 6.5, 1.0)  # of log γ to start from
_MEMORY = (0.02, 0.98)


def fit_surrogate(
    effects: Array,
    curricula: Sequence[Curriculum],
    losses: Sequence[Array],
    grid: npt.NDArray[np.int64],
    *,
    memory: float,
    corrected: bool,
    rates: Array,
    near: Surrogate | None = None,
) -> Surrogate:
    """The surrogate with these effects that is nearest to recorded runs.

    Parameters
    ----------
    effects : B [train, test] on log(eᴸ − 1), negative lowers the loss; any units.
    losses : one [point, test] a run, at the steps ``grid`` up to its end; finite, positive.
    memory, corrected : the optimizer's (memory.py). rates : relative learning rates [step].
    near : one fitted to the same runs with similar effects, to start from.
    """
    tests = effects.shape[1]
    true, reached = _padded(losses, len(grid))

    def mean(values: Array) -> Array:
        return _mean(values, reached)

    level, average = mean(link(true, "log_odds")), mean(true)
    spread = np.sqrt(np.square(np.where(reached, true - average, 0.0))[:, 1:].sum()) or 1.0
    steps = int(grid[-1])
    time = np.log1p(np.arange(steps)) / max(np.log1p(steps - 1), 1e-12)
    hats = np.stack([np.interp(time, np.linspace(0, 1, KNOTS), hat) for hat in np.eye(KNOTS)], axis=1)
    relative = rates[np.minimum(np.arange(steps), len(rates) - 1)]
    unit = np.sqrt(np.square(effects).mean()) or 1.0
    left, values, right = np.linalg.svd(-effects / unit, full_matrices=False)
    train, test = left * np.sqrt(values), right.T * np.sqrt(values)
    start = -float(link(average[0].mean(), "log_odds"))
    batches = Batches.of(curricula)

    def surrogate(parameters: Array, average: Array) -> Surrogate:
        gamma = relative * np.exp(hats @ parameters[2:])
        feedback, beta = float(np.exp(parameters[0])), float(expit(parameters[1]))
        return Surrogate(train, test, gamma, beta, corrected, feedback, start, average)

    def moved(parameters: Array) -> Array:
        """What training changes log(eᴸ − 1) by, [run, point, test]."""
        places, _ = surrogate(parameters, level).replay(batches, grid)
        return np.asarray(-places @ test.T, np.float64)

    usual = np.array([0.5 * np.log(len(effects) / tests), logit(np.clip(memory, *_MEMORY))])

    def residuals(parameters: Array) -> Array:
        change = moved(parameters)
        told = unlink(level + change - mean(change), "log_odds")
        wrong = np.where(reached, told - mean(told) + average - true, 0.0)[:, 1:] / spread
        rough = np.sqrt(ROUGHNESS / (KNOTS - 1)) * np.diff(parameters[2:])
        return np.concatenate([wrong.ravel(), rough, np.sqrt(TRUST) * (parameters[:2] - usual)])

    starts = [np.concatenate([usual, np.full(KNOTS, log_rate)]) for log_rate in _LEVELS]
    if near is not None:
        trained = relative > 0
        log_rates = np.log(near.rates[trained] / relative[trained])
        at_knots = np.interp(np.linspace(0, 1, KNOTS), time[trained], log_rates)
        starts = [np.concatenate([[np.log(near.feedback), logit(near.memory)], at_knots])]
    first = min(starts, key=lambda parameters: float(np.square(residuals(parameters)).sum()))
    found = least_squares(residuals, first, xtol=1e-6, ftol=1e-6, gtol=1e-8, max_nfev=60).x
    return anchored(surrogate(found, level), curricula, losses, grid)


def anchored(
    surrogate: Surrogate,
    curricula: Sequence[Curriculum],
    losses: Sequence[Array],
    grid: npt.NDArray[np.int64],
) -> Surrogate:
    """The surrogate that tells these runs with the mean log-odds that they have; arguments as above."""
    true, reached = _padded(losses, len(grid))
    moved = -surrogate.replay(Batches.of(curricula), grid)[0] @ surrogate.test.T
    left_over = _mean(link(true, "log_odds") - moved, reached)
    steps = np.arange(grid[-1] + 1)
    return replace(
        surrogate, average=np.stack([np.interp(steps, grid, column) for column in left_over.T], axis=1)
    )


def _padded(losses: Sequence[Array], points: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Losses [run, point, test], after a run's end its last; which points were reached [run, point, 1]."""
    reached = np.arange(points) < np.array([len(run) for run in losses])[:, None]
    padded = [np.pad(run, ((0, points - len(run)), (0, 0)), mode="edge") for run in losses]
    return np.stack(padded), reached[..., None]


def _mean(values: Array, reached: npt.NDArray[np.bool_]) -> Array:
    """Over the runs that reached a point, [point, test]."""
    return np.asarray(np.where(reached, values, 0.0).sum(0) / np.maximum(reached.sum(0), 1), np.float64)
