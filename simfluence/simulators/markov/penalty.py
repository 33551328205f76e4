"""Choosing the penalty whose simulations come closest to recorded runs that its fit has not seen.

    error(λ) = mean over folds and test examples of the mean squared error over runs and steps

The grid is first gone through from the largest penalty down on a few test examples, until errors have risen
three times in a row: small penalties take most of the time and are rarely best. The best one and its
neighbours are then compared on all test examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from simfluence.kernels.threads import SIMD_WIDTH, slices
from simfluence.ridge import RidgeProblem, solve_ridge

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-4, 4.5, 0.5))
"""The grid that penalties are chosen from."""

_TOLERANCE = 3e-6  # of coefficients that are compared: errors are then good to about a part in ten thousand
_RISES = 3
_BYTES = 2**27  # of coefficients held at once

RollOut = Callable[[IntArray, Array, Array], Array]
"""(numbers of runs, coefficients [block, n, column], initial losses [run, column]) → losses [run, step + 1,
column]
"""


@dataclass(frozen=True)
class Fold:
    """The numbers of the rows to fit, and of the runs to simulate."""

    rows: IntArray
    scored: IntArray


def folds_over_runs(run_of_row: IntArray, n_runs: int, folds: int) -> list[Fold]:
    """Every run is simulated once, by a fit to the runs of the other folds; ValueError if there is one run
    only.
    """
    if n_runs < 2:
        raise ValueError(
            "choosing a penalty takes validation runs, or at least two training runs to"
            " cross-validate over; give one of them, or a penalty"
        )
    number = np.arange(n_runs) % min(folds, n_runs)
    return [
        Fold(np.flatnonzero(number[run_of_row] != k), np.flatnonzero(number == k))
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
    penalties, rough = np.sort(grid)[::-1], np.empty(0)
    while len(rough) < len(penalties) and len(rough) <= _best(rough) + _RISES:
        rough = np.append(rough, errors_of(True, penalties[len(rough) : len(rough) + _RISES]))
    errors = np.full(len(penalties), np.nan)
    best, found = -1, _best(rough)
    while found != best:  # until the best one's neighbours are both worse
        best = found
        near = np.arange(max(best - 1, 0), min(best + 2, len(penalties)))
        near = near[np.isnan(errors[near])]
        if len(near):
            errors[near] = errors_of(False, penalties[near])
        found = _best(errors)
    if not np.isfinite(errors[best]):
        raise ValueError(
            "every penalty tried gives simulations that leave the range of floats: look for runs that"
            " diverged, or give a larger penalty, another center or clip='range'"
        )
    known = np.flatnonzero(~np.isnan(errors))[::-1]
    return float(penalties[best]), {float(penalties[k]): float(errors[k]) for k in known}


def _best(errors: Array) -> int:
    """The place of the smallest; the first one where several are, or where none is known."""
    return int(np.argmin(np.where(np.isnan(errors), np.inf, errors))) if len(errors) else 0


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
        for fold in folds:
            rows = problem.rows(fold.rows)
            for part in slices(len(tests), max(chunk, SIMD_WIDTH)):
                chosen = tests[part]
                solution = solve_ridge(rows.tests(chosen), list(penalties), device, tolerance=_TOLERANCE)
                columns = np.moveaxis(solution.coefficients, 0, 2).reshape(problem.blocks, problem.n, -1)
                true = losses[np.ix_(fold.scored, np.arange(losses.shape[1]), chosen)].astype(np.float64)
                start = np.tile(np.nan_to_num(true[:, 0], posinf=0.0), (1, len(penalties)))
                found = _mean_squares(true, roll_out(fold.scored, columns, start))
                errors[:, part] += np.where(solution.residual <= _TOLERANCE, found, np.inf)
        errors[np.isnan(errors)] = np.inf
        return errors.mean(axis=1) / len(folds)

    return errors_of


def _mean_squares(true: Array, simulated: Array) -> Array:
    """Mean squared errors over runs and steps 1 .. T where the truth is finite: [run, step + 1, λ × test] →
    [λ, test].
    """
    true = true[:, : simulated.shape[1]]  # the longest run may be in another fold
    runs, points, tests = true.shape
    started = np.isfinite(true[:, :1])  # nothing can be simulated from an unknown start
    known = np.isfinite(true[:, 1:]) & started
    target = np.where(known, true[:, 1:], 0.0)[:, :, None]
    with np.errstate(over="ignore", invalid="ignore"):
        difference = simulated[:, 1:points].reshape(runs, points - 1, -1, tests) - target
        sums = np.einsum("rsz,rslz,rslz->lz", known, difference, difference, optimize=False)
    return sums / np.maximum(known.sum(axis=(0, 1)), 1)
