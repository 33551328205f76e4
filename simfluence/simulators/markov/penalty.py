"""Choosing the penalty by rollout error: on given validation runs, or cross-validated over runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from simfluence.kernels.threads import SIMD_WIDTH, slices
from simfluence.ridge import PATH_TOLERANCE, Paths, RidgeProblem
from simfluence.runs import RunSet

Array = npt.NDArray[np.float64]

PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-4, 4.5, 0.5))
"""The grid that penalties are chosen from."""

_CLOSE = 3e-3  # relative: screened errors are good to about a part in a thousand
_EXACT = 1e-7
_CHUNK_BYTES = 2**27  # coefficients of all penalties held at once

Rollout = Callable[[npt.NDArray[np.int64], Array, Array], Array]
"""(numbers of runs, coefficients [block, n, column], initial losses [run, column]) → simulated losses
[run, step + 1, column]"""


@dataclass(frozen=True)
class Fold:
    """Rows to fit and runs to score; numbers into the rows of a problem and the runs of a set."""

    rows: npt.NDArray[np.int64]
    scored: npt.NDArray[np.int64]


def folds_over_runs(run_of_row: npt.NDArray[np.int64], n_runs: int, folds: int) -> list[Fold]:
    """Every run is scored once, by a fit to the runs of the other folds."""
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


def rollout_errors(
    problem: RidgeProblem,
    folds: Sequence[Fold],
    scored: RunSet,
    roll_out: Rollout,
    penalties: Array,
    weights: Array,
    device: torch.device,
    per_test: bool = False,
) -> tuple[Array, Array]:
    """The penalties that are worth comparing, ascending, and the rollout error of each, [λ] and [λ, test].

    The rollout error is the mean squared error over steps and scored runs, averaged over folds; inf where rollouts
    leave the range of floats.

    Where one penalty is to serve all test examples, the grid is first gone through from its largest penalty down on a
    few test examples, until errors have risen for three penalties in a row: small penalties take most of the time and
    are rarely best. The best one and its neighbours are then compared on all test examples. Designs that all test
    examples share are diagonalised once, so that every penalty is compared.

    Parameters
    ----------
    scored : the runs that folds are scored on. weights : of these, [run].
    roll_out : how coefficients simulate some of them.
    """

    def errors_of(tests: npt.NDArray[np.int64], some: Array) -> Array:
        losses = scored.loss[..., tests].astype(np.float64)
        part = problem if len(tests) == problem.n_tests else problem.tests(tests)
        return _grid_errors(part, folds, losses, roll_out, some, weights, device, per_test)

    everything = np.arange(problem.n_tests)
    grid = np.sort(penalties)
    if per_test or problem.shared:
        return grid, errors_of(everything, grid)
    descending = grid[::-1]
    few = np.unique(np.linspace(0, problem.n_tests - 1, SIMD_WIDTH).round().astype(np.int64))
    rough: list[float] = []
    while len(rough) < len(grid):
        rough += errors_of(few, descending[len(rough) : len(rough) + 3]).mean(1).tolist()
        if len(rough) - 1 - int(np.argmin(rough)) >= 3:
            break
    best = int(np.argmin(rough))
    low, high = max(best - 1, 0), min(best + 1, len(grid) - 1)
    errors = errors_of(everything, descending[low : high + 1])
    while (at := int(np.argmin(errors.mean(1)))) in (
        0,
        len(errors) - 1,
    ):  # on all, the best one may lie farther
        if at == 0 and low > 0:
            low -= 1
            errors = np.concatenate([errors_of(everything, descending[low : low + 1]), errors])
        elif at == len(errors) - 1 and high < len(grid) - 1:
            high += 1
            errors = np.concatenate([errors, errors_of(everything, descending[high : high + 1])])
        else:
            break
    return descending[low : high + 1][::-1], errors[::-1]


def _grid_errors(
    problem: RidgeProblem,
    folds: Sequence[Fold],
    losses: Array,
    roll_out: Rollout,
    penalties: Array,
    weights: Array,
    device: torch.device,
    per_test: bool,
) -> Array:
    """[λ, test], for recorded losses [run, step + 1, test].

    All penalties are screened with coefficients that are good to a few digits; where more than one comes as close to
    the best (to a test example's best, if ``per_test``) as these digits tell, these are computed again, exactly, so
    that the choice does not depend on rounding.
    """
    size = max(1, _CHUNK_BYTES // (8 * len(penalties) * problem.columns))
    size -= size % SIMD_WIDTH if size > SIMD_WIDTH else 0
    rows, chunks = [fold.rows for fold in folds], slices(problem.n_tests, size)
    parts = [(tests, Paths(problem.tests(tests), rows, device)) for tests in chunks]
    common = parts, folds, losses, roll_out, weights
    errors = _path_errors(*common, penalties, PATH_TOLERANCE)
    if problem.shared:  # exact at once
        return errors
    means = errors if per_test else errors.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        close = means <= (1 + _CLOSE) * means.min(axis=0)
    in_doubt = np.flatnonzero((close & (close.sum(axis=0) > 1)).any(axis=1))
    if len(in_doubt):
        errors[in_doubt] = _path_errors(*common, penalties[in_doubt], _EXACT)
    return errors


def _path_errors(
    parts: Sequence[tuple[slice, Paths]],
    folds: Sequence[Fold],
    losses: Array,
    roll_out: Rollout,
    weights: Array,
    penalties: Array,
    tolerance: float,
) -> Array:
    """[λ, test], from the paths of some of the test examples after the other."""
    count = len(penalties)
    errors = np.zeros((count, losses.shape[2]))
    for (tests, paths), (number, fold) in itertools.product(parts, enumerate(folds)):
        thetas, true = paths.solve(number, penalties, tolerance), losses[fold.scored][..., tests]
        columns = np.moveaxis(thetas, 0, 2).reshape(*thetas.shape[1:3], -1)  # λ × test
        start = np.tile(np.nan_to_num(true[:, 0], posinf=0.0), (1, count))
        simulated = roll_out(fold.scored, columns, start)
        reached = true[:, : simulated.shape[1]]  # the longest run may be in another fold
        errors[:, tests] += _errors(reached, simulated, weights[fold.scored])
    errors[~np.isfinite(errors)] = np.inf
    return errors / len(folds)


def _errors(true: Array, simulated: Array, weights: Array) -> Array:
    """MSE over runs and steps 1 .. T where the truth is finite: [run, step + 1, λ × test] → [λ, test]."""
    steps, tests = true.shape[1], true.shape[2]
    started = np.isfinite(true[:, :1])  # nothing can be simulated from an unknown start
    known = (np.isfinite(true[:, 1:]) & started) * weights[:, None, None]
    target = np.where(np.isfinite(true), true, 0.0)[:, 1:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        difference = simulated[:, 1:steps].reshape(len(true), steps - 1, -1, tests) - target
        sums = np.einsum("rsz,rslz,rslz->lz", known, difference, difference, optimize=False)
    return sums / np.maximum(known.sum((0, 1)), 1e-300)


def choose_penalty(errors: Array, penalties: Array, per_test: bool) -> Array:
    """The penalty with the smallest error, [test] or a scalar array; ties go to the larger.

    Raises ValueError if no penalty gives finite errors.
    """
    if not per_test:
        errors = errors.mean(axis=1, keepdims=True)
    if not np.isfinite(errors).any(axis=0).all():
        raise ValueError(
            "every penalty tried gives rollouts that leave the range of floats: look for runs that"
            " diverged, or give a larger penalty, another center or clip='range'"
        )
    best = len(penalties) - 1 - np.argmin(errors[::-1], axis=0)
    return penalties[best] if per_test else penalties[best[0]]
