"""Ridge regression by Cholesky factorization: of each test example's system, or of one that all share.

    primal  (XᵀX + λP) θ = Xᵀy                                   [columns, columns]
    dual    (XXᵀ + λI) α = y,   θ = Xᵀα                          [rows, rows]

The smaller of the two is factorized, on the CPU or a GPU; the primal one without a penalty, or with an
example that is not penalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse

from simfluence.kernels.threads import slices
from simfluence.ridge.problem import Array, BoolArray, RidgeProblem, system_size, uses_dual

_BYTES = {"cpu": 2**23, "cuda": 2**30}  # of systems that are factorized at once


def solve_cholesky(
    problem: RidgeProblem, penalties: Sequence[float], device: torch.device
) -> tuple[Array, BoolArray]:
    """Coefficients [penalty, block, n, test], and bool [penalty, test], where there is no unique solution."""
    dual = min(penalties) > 0 and uses_dual(problem)
    size = max(1, _BYTES[device.type] // (8 * system_size(problem) ** 2))
    parts = [slice(None)] if problem.shared else slices(problem.n_tests, size)
    thetas = np.empty((len(penalties), problem.blocks, problem.n, problem.n_tests))
    singular = np.empty((len(penalties), problem.n_tests), bool)
    for part in parts:
        some = problem.tests(part)
        system, sides = _dual_system(some, device) if dual else _primal_system(some, device)
        weights = torch.ones(system.shape[-1]).to(system)
        if problem.free:
            weights.view(problem.blocks, -1)[:, -1] = 0.0
        for number, penalty in enumerate(penalties):
            shifted = system.clone()
            shifted.diagonal(dim1=-2, dim2=-1).add_(penalty * weights)
            solved, singular_part = _solve_positive(shifted, sides)
            found = solved.movedim(0, -2).flatten(1).cpu().numpy()  # [row or column, test]
            theta = some.from_dual(found) if dual else found.reshape(some.blocks, some.n, -1)
            thetas[number, ..., part] = theta
            singular[number, part] = singular_part.cpu().numpy()
    return thetas, singular


def _primal_system(problem: RidgeProblem, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """XᵀX [system, column, column] and Xᵀy [system, column, response]; one system where all share it."""
    scales, grams, sides = np.broadcast_arrays(*problem.scales), [], []
    for z in range(scales[0].shape[1]):
        x = sparse.hstack([sparse.diags_array(scale[:, z]) @ problem.counts for scale in scales]).tocsr()
        grams.append((x.T @ x).toarray())
        sides.append(x.T @ (problem.target if problem.shared else problem.target[:, [z]]))
    return torch.from_numpy(np.stack(grams)).to(device), torch.from_numpy(np.stack(sides)).to(device)


def _dual_system(problem: RidgeProblem, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """XXᵀ = (a aᵀ + b bᵀ) ∘ UUᵀ [system, row, row], UUᵀ common to all, and y [system, row, response]."""
    kernel = torch.from_numpy((problem.counts @ problem.counts.T).toarray()).to(device)
    scales = torch.from_numpy(np.stack(np.broadcast_arrays(*problem.scales))).to(device)  # [block, row, test]
    target = torch.from_numpy(np.ascontiguousarray(problem.target)).to(device)
    system = torch.einsum("krz,ksz->zrs", scales, scales).mul_(kernel)
    return system, target[None] if problem.shared else target.T[..., None]


def _solve_positive(system: torch.Tensor, sides: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S x = sides for symmetric S ⪰ 0 [system, p, p], sides [system, p, c].

    Returns x, the smallest where S is singular to working precision, and where it is, bool [system].
    """
    factor, failed = torch.linalg.cholesky_ex(system)
    pivots = factor.diagonal(dim1=-2, dim2=-1).amin(-1)
    largest = system.diagonal(dim1=-2, dim2=-1).amax(-1)
    # a pivot as small as rounding: the factorization went through on noise alone
    singular = (failed > 0) | ~(pivots**2 >= 1e-13 * largest.clamp_min(torch.finfo(torch.float64).tiny))
    solved = torch.cholesky_solve(sides, factor)
    for z in torch.nonzero(singular).flatten():
        solved[z] = torch.linalg.pinv(system[z], hermitian=True, rtol=1e-12) @ sides[z]
    return solved, singular
