"""Ridge regression of many responses whose designs share one sparse matrix.

    minimise ‖design_z θ − y_z‖² + λ_z θᵀ P θ,    design_z = [diag(s_1z) U, …, diag(s_kz) U]

``solve_ridge`` takes the solver that should be fastest. ``problem`` states the problem and its conventions;
``cholesky`` (primal and dual) and ``conjugate_gradients`` solve it, ``path`` does for a grid of penalties. Another
problem, of one dense design for all responses, is in ``leave_run_out``.
"""

from __future__ import annotations

import numpy as np
import torch

from simfluence.devices import chosen_device
from simfluence.ridge.cholesky import solve_dual, solve_primal
from simfluence.ridge.conjugate_gradients import TOLERANCE, solve_iterative
from simfluence.ridge.path import FACTOR_COLUMNS, PATH_TOLERANCE, Paths
from simfluence.ridge.problem import (
    Array,
    Convergence,
    RidgeProblem,
    RidgeSolution,
    SolverName,
)


def choose_solver(problem: RidgeProblem, penalty: Array) -> SolverName:
    """The solver with the smallest estimated cost; without a penalty the primal one, which sees rank."""
    if (penalty <= 0).any():
        return "primal"
    rows, p = problem.counts.shape[0], problem.columns
    factors = len(np.unique(penalty)) if problem.shared else problem.n_tests
    # seconds on a core, as measured: factorizations 2.5e10 operations a second, an entry of a system 8e-9 s,
    # and about thirty iterations of 3e9 sparse operations a second
    operations = 2 * problem.blocks * problem.counts.nnz + 2 * rows + 6 * p
    seconds: dict[SolverName, float] = {
        "primal": factors * (p**3 / 3 / 2.5e10 + p**2 * 8e-9),
        "dual": problem.n_tests * (rows**3 / 3 / 2.5e10 + rows**2 * 8e-9),
        "iterative": 30 * problem.n_tests * operations / 3e9,
    }
    return min(seconds, key=lambda name: seconds[name])


def solve_ridge(
    problem: RidgeProblem,
    penalty: float | Array,
    solver: SolverName | None = None,
    device: torch.device | None = None,
    tolerance: float = TOLERANCE,
) -> RidgeSolution:
    """The coefficients of all test examples.

    Parameters
    ----------
    penalty : λ ≥ 0, or [test].
    solver : None takes the one that should be fastest; the iterative one then falls back to a
        factorization where it does not converge and that is possible.
    device : where systems are factorized; None is the GPU if torch finds one. Iterations run on the CPU.
    tolerance : of the iterative solver.
    """
    penalties = np.broadcast_to(np.asarray(penalty, np.float64), problem.n_tests).copy()
    device = device or chosen_device()
    chosen = solver or choose_solver(problem, penalties)
    if chosen == "primal":
        return solve_primal(problem, penalties, device)
    if chosen == "dual":
        return solve_dual(problem, penalties, device)
    if chosen != "iterative":
        raise ValueError(f"solver must be 'primal', 'dual', 'iterative' or None, got {solver!r}")
    solution = solve_iterative(problem, penalties, tolerance)
    smallest = min(problem.columns, problem.counts.shape[0])
    if solver is None and solution.convergence.failed and smallest <= FACTOR_COLUMNS:  # type: ignore[union-attr]
        direct = solve_dual if problem.counts.shape[0] < problem.columns else solve_primal
        return direct(problem, penalties, device)
    return solution


__all__ = [
    "PATH_TOLERANCE",
    "TOLERANCE",
    "Convergence",
    "Paths",
    "RidgeProblem",
    "RidgeSolution",
    "SolverName",
    "choose_solver",
    "solve_ridge",
]
