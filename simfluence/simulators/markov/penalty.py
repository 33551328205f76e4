"""Choosing the penalty whose simulations come closest to recorded runs that its fit has not seen.

    error(λ) = mean over folds and test examples of the mean squared error over runs and steps

The grid is first gone through from the largest penalty down on a few test examples, until three penalties in
a row were worse than the best: small penalties take most of the time and are rarely best. The best one and
its neighbours are then compared on all test examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simfluence.kernels.threads import SIMD_WIDTH, slices
from simfluence.ridge import RidgeProblem, solve_ridge
from simfluence.ridge.problem import Array, IntArray

if TYPE_CHECKING:
    import torch

PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-4, 4.5, 0.5))
"""The grid that penalties are chosen from."""

FOLDS = 5
"""Into how many parts training runs are left out where there are no validation runs."""

_TOLERANCE = 3e-6  # of coefficients that are compared: errors are then good to about a part in ten thousand
_WORSE = 3  # penalties in a row after the best one
_BYTES = 2**27  # of coefficients held at once

RollOut = Callable[[IntArray, Array, Array], Array]
"""(numbers of runs, coefficients [block, n, column], L_0 [run, column]) → losses [run, step + 1, column]"""


Fold = tuple[IntArray, IntArray]
"""The numbers of the rows to fit, and of the runs to simulate."""


def folds_over_runs(run_of_row: IntArray, n_runs: int) -> list[Fold]:
    """Every run is simulated once, by a fit to runs of other folds. ValueError if there is one run only."""
    if n_runs < 2:
        raise ValueError(
            "choosing a penalty takes validation runs, or at least two training runs to"
            " cross-validate over; give one of them, or a penalty"
        )
    number = np.arange(n_runs) % min(FOLDS, n_runs)
    return [
        (np.flatnonzero(number[run_of_row] != k), np.flatnonzero(number == k))
        for k in range(number.max() + 1)
    ]


def choose_penalty(
    errors_of: Callable[[bool, Array], Array], grid: Sequence[float]
) -> tuple[float, dict[float, float]]:
    """The penalty with the smallest error, and the errors that were computed on all test examples.

    Parameters
    ----------
    errors_of : (whether on a few test examples, penalties [λ]) → errors [λ]. grid : the penalties.

    Raises ValueError if no penalty gives finite errors.
    """
    penalties = np.sort(grid)[::-1]
    rough: list[float] = []
    while len(rough) < len(penalties) and (not rough or len(rough) <= int(np.argmin(rough)) + _WORSE):
        rough.extend(errors_of(True, penalties[len(rough) : len(rough) + _WORSE]))
    errors: dict[int, float] = {}
    best, found = -1, int(np.argmin(rough))
    while found != best:  # until the best one's neighbours are both worse
        best = found
        near = [k for k in (best - 1, best, best + 1) if 0 <= k < len(penalties) and k not in errors]
        if near:
            errors.update(zip(near, errors_of(False, penalties[near]), strict=True))
        found = min(sorted(errors), key=errors.__getitem__)  # of equal ones the larger penalty
    if not np.isfinite(errors[best]):
        raise ValueError(
            "every penalty tried gives simulations that leave the range of floats: look for runs that"
            " diverged, or give a larger penalty or another center"
        )
    return float(penalties[best]), {float(penalties[k]): float(errors[k]) for k in sorted(errors)[::-1]}


def rollout_errors(
    problem: RidgeProblem, folds: Sequence[Fold], losses: Array, roll_out: RollOut, device: torch.device
) -> Callable[[bool, Array], Array]:
    """What :func:`choose_penalty` calls: (whether on a few test examples, penalties [λ]) → errors [λ].

    An error is inf where a simulation leaves the range of floats, and where iterations do not converge.

    Parameters
    ----------
    losses : of the runs that folds number, float [run, step + 1, test].
    roll_out : how coefficients simulate some of these runs.
    """
    few = np.unique(np.linspace(0, problem.n_tests - 1, SIMD_WIDTH).round().astype(np.int64))

    def errors_of(rough: bool, penalties: Array) -> Array:
        tests = few if rough else np.arange(problem.n_tests)
        chunk = _BYTES // (8 * len(penalties) * problem.columns) // SIMD_WIDTH * SIMD_WIDTH
        errors = np.zeros((len(penalties), len(tests)))
        for fitted, scored in folds:
            rows = problem.rows(fitted)
            for part in slices(len(tests), max(chunk, SIMD_WIDTH)):
                chosen = tests[part]
                solution = solve_ridge(rows.tests(chosen), list(penalties), device, tolerance=_TOLERANCE)
                columns = np.moveaxis(solution.coefficients, 0, 2).reshape(problem.blocks, problem.n, -1)
                true = losses[np.ix_(scored, np.arange(losses.shape[1]), chosen)].astype(np.float64)
                start = np.tile(np.nan_to_num(true[:, 0], posinf=0.0), (1, len(penalties)))
                found = _mean_squares(true, roll_out(scored, columns, start))
                errors[:, part] += np.where(solution.residual <= _TOLERANCE, found, np.inf)
        errors[np.isnan(errors)] = np.inf
        return errors.mean(axis=1) / len(folds)

    return errors_of


def _mean_squares(true: Array, simulated: Array) -> Array:
    """[λ, test], over runs and steps with known losses; ``simulated`` is [run, step + 1, λ × test]."""
    true = true[:, : simulated.shape[1]]  # the longest run may be in another fold
    runs, points, tests = true.shape
    known = np.isfinite(true[:, 1:]) & np.isfinite(true[:, :1])  # without a start, nothing is simulated
    target = np.where(known, true[:, 1:], 0.0)[:, :, None]
    with np.errstate(over="ignore", invalid="ignore"):
        difference = simulated[:, 1:points].reshape(runs, points - 1, -1, tests) - target
        sums = np.einsum("rsz,rslz,rslz->lz", known, difference, difference, optimize=False)
    return sums / np.maximum(known.sum(axis=(0, 1)), 1)
