"""Coefficients for a grid of penalties, for choosing among them.

Shared designs are diagonalised once, G = V D Vᵀ: θ_λ = V (D + λ)⁻¹ Vᵀ m for every λ. Others go
through conjugate gradients with all λ at once. What does not reach the tolerance is factorized, where
that is possible.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from simfluence.kernels.threads import SIMD_WIDTH, in_threads, slices
from simfluence.ridge.columns import SINGLE_TOLERANCE, Columns, all_rows, is_compiled_for
from simfluence.ridge.dual import solve_dual
from simfluence.ridge.gpu import (
    Regressions,
    Systems,
    columns_at_once,
    conjugate_gradients,
    solve_systems,
)
from simfluence.ridge.normal_equations import normal_equations_of
from simfluence.ridge.primal import solve_primal
from simfluence.ridge.problem import Array, BoolArray, RidgeProblem, off_mean
from simfluence.ridge.products import CountProducts

IntArray = npt.NDArray[np.int64]

FACTOR_COLUMNS = 8000  # the widest system that is factorized where iterations fail
PATH_TOLERANCE = 3e-6  # rollout errors are then good to about a part in a thousand
_LIMIT = 150  # of iterations
_SHARED_COLUMNS = 5000  # wider Gram matrices cost more to diagonalise than to iterate with
_KEPT_BYTES = 2**28  # of coefficients


class Paths:
    """θ(λ) of a problem on several choices of its rows.

    Parameters
    ----------
    rows : for each choice, the rows' numbers.
    """

    def __init__(self, problem: RidgeProblem, rows: Sequence[IntArray], device: torch.device) -> None:
        self._problem, self._rows, self._device = problem, rows, device
        self._decompose = problem.shared and problem.columns <= _SHARED_COLUMNS
        compiled = not self._decompose and is_compiled_for(device)
        self._compiled = all_rows(problem) if compiled else []
        self._kept: dict[int, list[Columns]] = {}

    def solve(self, choice: int, penalties: Array, tolerance: float = PATH_TOLERANCE) -> Array:
        """θ [λ, block, n, test] on a choice of rows for positive penalties [λ], to a relative ``tolerance``.

        What is asked for again, to more digits, begins where it ended, if there was room to keep that.
        """
        if self._compiled:
            thetas, converged = self._compiled_path(choice, penalties, tolerance)
            if converged.all():
                return thetas
        problem = self._problem.rows(self._rows[choice])
        if self._decompose:
            return _shared_path(problem, penalties, self._device)
        if not self._compiled:
            thetas, converged = _torch_path(problem, penalties, self._device, tolerance)
        _factorize_others(thetas, converged, problem, penalties, self._device)
        return thetas

    def _compiled_path(self, choice: int, penalties: Array, tolerance: float) -> tuple[Array, BoolArray]:
        columns = self._kept.get(choice)
        if columns is None:
            rows = self._rows[choice]
            columns = list(in_threads(lambda part: Columns(part, rows), self._compiled))
            numbers = SIMD_WIDTH * len(self._compiled) * self._problem.columns
            size = numbers * (4 * len(penalties) + 8 * (1 + self._problem.blocks))
            if size * len(self._rows) <= _KEPT_BYTES:
                self._kept[choice] = columns
        parts = in_threads(lambda part: part.path(penalties, tolerance, _LIMIT), columns)
        thetas, converged = zip(*parts, strict=True)
        return np.concatenate(thetas, axis=-1), np.concatenate(converged, axis=-1)


def solve_path(
    problem: RidgeProblem, penalties: Array, device: torch.device, tolerance: float = PATH_TOLERANCE
) -> Array:
    """The same on all rows."""
    return Paths(problem, [np.arange(problem.counts.shape[0])], device).solve(0, penalties, tolerance)


def _factorize_others(
    thetas: Array, converged: BoolArray, problem: RidgeProblem, penalties: Array, device: torch.device
) -> None:
    """Replace what did not converge, where factors can be held."""
    rows, columns = problem.counts.shape[0], problem.columns
    if min(rows, columns) > FACTOR_COLUMNS:
        return
    direct = solve_dual if rows < columns else solve_primal
    for number, missing in enumerate(np.logical_not(converged)):
        if missing.any():
            tests = np.flatnonzero(missing)
            part = direct(problem.tests(tests), np.full(len(tests), penalties[number]), device)
            thetas[number][..., tests] = part.coefficients


def _shared_path(problem: RidgeProblem, penalties: Array, device: torch.device) -> Array:
    """One eigendecomposition for all penalties and test examples.

    Pooled: N = I_k ⊗ 1/√n is eliminated first, G̃ = P (G − GN (NᵀGN)⁻¹ NᵀG) P, m̃ alike, and comes
    back as N β, β = (NᵀGN)⁻¹ Nᵀ(m − G θ̃).
    """
    equations = normal_equations_of(problem)
    gram = torch.from_numpy(equations.gram[0]).to(device)
    moment = torch.from_numpy(equations.moment.T).to(device)
    k, n = problem.blocks, problem.n
    reduced, side = gram, moment
    if problem.pooled:
        mean = torch.kron(torch.eye(k).to(gram), torch.full((n, 1), n**-0.5).to(gram))
        along = gram @ mean
        inverse = torch.linalg.pinv(mean.T @ along, hermitian=True, rtol=1e-12)
        reduced = gram - along @ inverse @ along.T
        reduced = off_mean(off_mean(reduced, k).T, k)
        side = moment - along @ (inverse @ (mean.T @ moment))
        side = side - mean @ (mean.T @ side)
    values, vectors = torch.linalg.eigh(reduced)
    rotated = vectors.T @ side
    thetas = []
    for penalty in penalties:
        theta = vectors @ (rotated / (values.clamp_min(0.0) + penalty)[:, None])
        if problem.pooled:
            theta = theta + mean @ (inverse @ (mean.T @ moment - along.T @ theta))
        thetas.append(theta.reshape(k, n, -1))
    return torch.stack(thetas).cpu().numpy()


def _solve_single(
    systems: Systems, moment: torch.Tensor, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Single precision throughout; done only where the residual itself, not its recurrence, says so too."""
    theta, done, _ = conjugate_gradients(systems, moment, tolerance, _LIMIT)
    residual = (moment - systems.apply(theta)).norm(dim=1) / moment.norm(dim=1).clamp_min(1e-30)
    return theta.double(), done & (residual <= 100 * tolerance)


def _torch_path(
    problem: RidgeProblem, penalties: Array, device: torch.device, tolerance: float
) -> tuple[Array, BoolArray]:
    products = CountProducts(problem.counts, device)
    tests, k, paths = problem.n_tests, problem.blocks, len(penalties)
    thetas = np.empty((paths, k, problem.n, tests))
    converged = np.empty((paths, tests), bool)
    grid = torch.from_numpy(penalties).to(device)
    for chunk in slices(tests, max(1, columns_at_once(problem) // paths)):
        regressions = Regressions(problem.tests(chunk), products)
        moment = regressions.moment.tile(1, paths)[None]
        systems = regressions.systems(grid[:, None].expand(-1, regressions.n_tests))
        if tolerance < SINGLE_TOLERANCE:
            theta, done, *_ = solve_systems(systems, moment, tolerance, _LIMIT)
        else:
            theta, done = _solve_single(systems.single(), moment.float(), tolerance)
        solved = theta[0].cpu().numpy().reshape(k, problem.n, paths, -1)
        thetas[..., chunk] = np.moveaxis(solved, 2, 0)
        converged[:, chunk] = done[0].cpu().numpy().reshape(paths, -1)
    return thetas, converged
