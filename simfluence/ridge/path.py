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

from simfluence.kernels.threads import SIMD_WIDTH, in_threads
from simfluence.ridge.cholesky import solve_dual, solve_primal
from simfluence.ridge.columns import Columns, all_rows
from simfluence.ridge.normal_equations import normal_equations_of
from simfluence.ridge.problem import Array, BoolArray, RidgeProblem, off_mean

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
    device : where systems are factorized.
    """

    def __init__(self, problem: RidgeProblem, rows: Sequence[IntArray], device: torch.device) -> None:
        self._problem, self._rows, self._device = problem, rows, device
        self._decompose = problem.shared and problem.columns <= _SHARED_COLUMNS
        self._all_rows = [] if self._decompose else all_rows(problem)
        self._kept: dict[int, list[Columns]] = {}

    def solve(self, choice: int, penalties: Array, tolerance: float = PATH_TOLERANCE) -> Array:
        """θ [λ, block, n, test] on a choice of rows for positive penalties [λ], to a relative ``tolerance``.

        What is asked for again, to more digits, begins where it ended, if there was room to keep that.
        """
        if self._decompose:
            return _shared_path(self._problem.rows(self._rows[choice]), penalties, self._device)
        thetas, converged = self._iterated(choice, penalties, tolerance)
        if not converged.all():
            problem = self._problem.rows(self._rows[choice])
            _factorize_others(thetas, converged, problem, penalties, self._device)
        return thetas

    def _iterated(self, choice: int, penalties: Array, tolerance: float) -> tuple[Array, BoolArray]:
        columns = self._kept.get(choice)
        if columns is None:
            rows = self._rows[choice]
            columns = list(in_threads(lambda part: Columns(part, rows), self._all_rows))
            numbers = SIMD_WIDTH * len(self._all_rows) * self._problem.columns
            size = numbers * (4 * len(penalties) + 8 * (1 + self._problem.blocks))
            if size * len(self._rows) <= _KEPT_BYTES:
                self._kept[choice] = columns
        parts = in_threads(lambda part: part.path(penalties, tolerance, _LIMIT), columns)
        thetas, converged = zip(*parts, strict=True)
        return np.concatenate(thetas, axis=-1), np.concatenate(converged, axis=-1)


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
