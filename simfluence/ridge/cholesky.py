"""Ridge regression by a Cholesky factorization for each test example, or one for all where their design is
the same.

    primal  (XᵀX + λP) θ = Xᵀy                                   [columns, columns]
    dual    (XXᵀ + λI) α = y,   θ = Xᵀα                          [rows, rows]

The smaller of the two is factorized, on the CPU or a GPU. Without a penalty, or with an example that is not
penalised, it is the primal one.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from simfluence.kernels.threads import slices
from simfluence.ridge.problem import Array, BoolArray, RidgeProblem

_GPU_BYTES = 2**30  # of systems that a GPU factorizes at once


def uses_dual(problem: RidgeProblem) -> bool:
    """Whether the dual system is the smaller one, and equivalent under every positive penalty."""
    return problem.counts.shape[0] < problem.columns and not problem.free


def system_size(problem: RidgeProblem) -> int:
    """Rows of the system to factorize."""
    return problem.counts.shape[0] if uses_dual(problem) else problem.columns


def solve_cholesky(problem: RidgeProblem, penalty: float, device: torch.device) -> tuple[Array, BoolArray]:
    """Coefficients float [block, n, test], and bool [test], where there is no unique solution."""
    solve = _solve_dual if penalty > 0 and uses_dual(problem) else _solve_primal
    if problem.shared:
        coefficients, singular = solve(problem, penalty, device)
        return coefficients, np.repeat(singular, problem.n_tests)
    size = 1 if device.type == "cpu" else _GPU_BYTES // (8 * system_size(problem) ** 2)
    parts = [solve(problem.tests(part), penalty, device) for part in slices(problem.n_tests, size)]
    thetas, failed = zip(*parts, strict=True)
    return np.concatenate(thetas, axis=-1), np.concatenate(failed)


def _solve_primal(problem: RidgeProblem, penalty: float, device: torch.device) -> tuple[Array, BoolArray]:
    weights = penalty * penalised(problem)
    grams, sides = [], []
    scales = np.broadcast_arrays(*problem.scales)
    for z in range(scales[0].shape[1]):
        x = sparse.hstack([sparse.diags_array(scale[:, z]) @ problem.counts for scale in scales]).tocsr()
        grams.append((x.T @ x).toarray())
        grams[-1][np.diag_indices(problem.columns)] += weights
        sides.append(x.T @ (problem.target if problem.shared else problem.target[:, [z]]))
    system, side = (torch.from_numpy(np.stack(parts)).to(device) for parts in (grams, sides))
    theta, singular = _solve_positive(system, side)
    theta = theta.movedim(0, -2).flatten(1)  # [column, test]
    return theta.reshape(problem.blocks, problem.n, -1).cpu().numpy(), singular.cpu().numpy()


def _solve_dual(problem: RidgeProblem, penalty: float, device: torch.device) -> tuple[Array, BoolArray]:
    """X Xᵀ = (a aᵀ + b bᵀ) ∘ UUᵀ, whose second factor all test examples share."""
    counts = problem.counts
    kernel = torch.from_numpy((counts @ counts.T).toarray()).to(device)
    scales = torch.from_numpy(np.stack(np.broadcast_arrays(*problem.scales))).to(device)  # [block, row, test]
    target = torch.from_numpy(problem.target).to(device)
    system = torch.einsum("krz,ksz->zrs", scales, scales).mul_(kernel)
    system.diagonal(dim1=-2, dim2=-1).add_(penalty)
    alpha, singular = _solve_positive(system, target[None] if problem.shared else target.T[..., None])
    rows = (scales * alpha.movedim(0, -2).flatten(1)).cpu().numpy()  # [block, row, test]
    return np.stack([counts.T @ part for part in rows]), singular.cpu().numpy()


def penalised(problem: RidgeProblem) -> Array:
    """The diagonal of P, [column]."""
    weights = np.ones((problem.blocks, problem.n))
    weights[:, problem.n - problem.free :] = 0.0
    return weights.ravel()


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
