"""Fewer rows than columns: one Cholesky factor of as many columns as there are rows.

With kernel K = X P Xᵀ = (Σ_j s_j s_jᵀ) ∘ (U P Uᵀ), whose second factor all test examples share,

    (K + λI) α = y − X N β,    θ = P Xᵀ α + N β,

N β the unpenalised averages of pooled problems (N = I_k ⊗ 1/√n; none otherwise), from NᵀXᵀα = 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from simfluence.ridge.primal import _CHUNK_BYTES, solve_positive
from simfluence.ridge.problem import (
    Array,
    RidgeProblem,
    RidgeSolution,
    norm_bound,
    off_mean,
    probes,
)


def solve_dual(problem: RidgeProblem, penalty: Array, device: torch.device) -> RidgeSolution:
    """All test examples, a chunk at a time; ``penalty`` is [test]."""
    counts = problem.counts
    total = np.asarray(counts.sum(axis=1)).reshape(-1, 1)
    inner = (counts @ counts.T).toarray()
    if problem.pooled:
        inner -= total * total.T / problem.n
    kernel = torch.from_numpy(inner).to(device)
    mean_row = torch.from_numpy(total / np.sqrt(problem.n)).to(device)
    size = max(1, _CHUNK_BYTES[device.type] // (8 * counts.shape[0] ** 2))
    norm = np.broadcast_to(norm_bound(problem), problem.n_tests).copy()
    parts = []
    for start in range(0, problem.n_tests, size):
        chunk = slice(start, start + size)
        signs = probes(problem.columns, problem.n_tests)[:, chunk]
        parts.append(_solve_chunk(problem.tests(chunk), penalty[chunk], norm[chunk], kernel, mean_row, signs))
    return RidgeSolution(
        coefficients=np.concatenate([part[0] for part in parts], axis=-1),
        solver="dual",
        singular=np.concatenate([part[1] for part in parts]),
        degrees_of_freedom=np.concatenate([part[2] for part in parts]),
        condition=np.concatenate([part[3] for part in parts]),
    )


def _solve_chunk(
    problem: RidgeProblem,
    penalty: Array,
    norm: Array,
    kernel: torch.Tensor,
    mean_row: torch.Tensor,
    signs: npt.NDArray[np.int8],
) -> tuple[Array, np.ndarray, Array, Array]:
    """(θ [block, n, test], singular, degrees of freedom, condition) of a few test examples."""
    device, k, tests = kernel.device, problem.blocks, problem.n_tests
    weights = torch.from_numpy(penalty).to(device)
    scales = torch.from_numpy(np.stack(problem.scales)).to(device).expand(-1, -1, tests)  # [block, row, test]
    target = torch.from_numpy(problem.target).to(device)
    system = torch.einsum("krz,ksz->zrs", scales, scales) * kernel
    system.diagonal(dim1=-2, dim2=-1).add_(weights[:, None])
    # a probe z of the columns is pushed to the rows: (G + λ)⁻¹ z = (z − Xᵀ (K + λ)⁻¹ X z) / λ
    probe = torch.from_numpy(signs).to(device, torch.float64).reshape(k, problem.n, tests)
    sides = [target.T[..., None], _design(problem, scales, _penalised(problem, probe)).T[..., None]]
    if problem.pooled:
        fixed = (scales * mean_row).permute(2, 1, 0)  # X N, [test, row, block]
        sides.append(fixed)
    solved, singular = solve_positive(system, torch.cat(sides, dim=-1))
    singular |= weights <= 0  # fewer rows than columns and no penalty
    alpha, probed, beta = solved[..., :1], solved[..., 1:2], None
    if problem.pooled:
        through = torch.linalg.pinv(fixed.mT @ solved[..., 2:], hermitian=True, rtol=1e-12)
        beta = through @ (fixed.mT @ alpha)
        alpha = alpha - solved[..., 2:] @ beta
        probed = probed - solved[..., 2:] @ (through @ (fixed.mT @ probed))
    theta = _penalised(problem, _adjoint(problem, scales, alpha[..., 0].T))
    back = _penalised(problem, _adjoint(problem, scales, probed[..., 0].T))
    if beta is not None:
        theta = theta + beta[..., 0].T[:, None] / np.sqrt(problem.n)
    # tr((G + λP)⁻¹ G): the penalised part by the probe, and each unpenalised direction
    freedom = (probe * back).sum((0, 1)) + (k if problem.pooled else 0)
    pushed = _penalised(problem, probe)
    inverse_norm = (pushed - back).norm(dim=(0, 1)) / weights / pushed.norm(dim=(0, 1))
    condition = torch.where(singular, torch.inf, (torch.from_numpy(norm).to(device) + weights) * inverse_norm)
    return tuple(part.cpu().numpy() for part in (theta, singular, freedom, condition))  # type: ignore[return-value]


def _penalised(problem: RidgeProblem, vectors: torch.Tensor) -> torch.Tensor:
    """P v, [block, n, test]."""
    return off_mean(vectors, 1) if problem.pooled else vectors


def _design(problem: RidgeProblem, scales: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """X v: [block, n, test] → [row, test]."""
    products = np.stack([problem.counts @ part for part in vectors.cpu().numpy()])
    return (scales * torch.from_numpy(products).to(scales.device)).sum(0)


def _adjoint(problem: RidgeProblem, scales: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Xᵀ r: [row, test] → [block, n, test]."""
    weighted = (scales * rows).cpu().numpy()
    return torch.from_numpy(np.stack([problem.counts.T @ part for part in weighted])).to(scales.device)
