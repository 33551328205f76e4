"""Ridge regressions of many responses on the same sparse counts, scaled by numbers of each response's own.

``problem`` states them. ``iterative`` solves them by conjugate gradients on the CPU, ``cholesky`` by
factorization on the CPU or a GPU. ``leave_run_out`` is another problem: one dense design for all responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from simfluence.ridge.iterative import solve_iterative
from simfluence.ridge.problem import RidgeProblem, RidgeSolution, system_size

if TYPE_CHECKING:
    import torch  # which takes a second to import, and is needed by few

Solver = Literal["auto", "iterative", "cholesky"]

EXACT = 1e-11
"""The tolerance of coefficients that are to be used."""

_SHARED_SIZE = 2000  # a system that all test examples share is factorized up to this size,
_OWN_SIZE = 8000  # one of a test example's own, where iterations fail, up to this one


def solve_ridge(
    problem: RidgeProblem,
    penalties: Sequence[float],
    device: torch.device,
    solver: Solver = "auto",
    tolerance: float = EXACT,
) -> RidgeSolution:
    """The coefficients of all test examples for every penalty ≥ 0.

    Parameters
    ----------
    device : where systems are factorized. Iterations run on the CPU.
    solver : "auto" factorizes where a penalty is 0, and small systems that all share, else iterates.
    tolerance : of iterations, for the residual relative to its size at zero.
    """
    if solver == "auto":
        small = problem.shared and system_size(problem) <= _SHARED_SIZE
        solver = "cholesky" if small or min(penalties) == 0 else "iterative"
    if solver == "iterative":
        return solve_iterative(problem, penalties, tolerance)
    from simfluence.ridge.cholesky import solve_cholesky  # with torch

    thetas, singular = solve_cholesky(problem, penalties, device)
    return RidgeSolution(thetas, "cholesky", np.any(singular, axis=0), np.zeros(singular.shape), 0)


def replace_unconverged(
    problem: RidgeProblem,
    penalty: float,
    solution: RidgeSolution,
    device: torch.device,
    tolerance: float = EXACT,
) -> None:
    """Factorize what did not reach the tolerance in the solution for one penalty, if it is not too large."""
    missing = np.flatnonzero(solution.residual[0] > tolerance)
    if len(missing) and system_size(problem) <= _OWN_SIZE:
        from simfluence.ridge.cholesky import solve_cholesky  # with torch

        thetas, singular = solve_cholesky(problem.tests(missing), [penalty], device)
        solution.coefficients[..., missing], solution.singular[missing] = thetas, singular[0]
        solution.residual[0, missing] = 0.0


__all__ = ["EXACT", "RidgeProblem", "RidgeSolution", "Solver", "replace_unconverged", "solve_ridge"]
