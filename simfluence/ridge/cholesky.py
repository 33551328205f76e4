"""Ridge regression by factorization: one Cholesky factor a test example, or one for all where designs are shared.

Primal, with a factor of as many columns as there are coefficients:

    (G + λ P) θ = m,    G = XᵀX,  m = Xᵀy

Dual, with a factor of as many columns as there are rows. With the kernel K = X P Xᵀ = (Σ_j s_j s_jᵀ) ∘ (U P Uᵀ), whose
second factor all test examples share,

    (K + λI) α = y − X N β,    θ = P Xᵀ α + N β,

N β the unpenalised averages of pooled problems (N = I_k ⊗ 1/√n; none otherwise), from NᵀXᵀα = 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import lapack

from simfluence.ridge.normal_equations import NormalEquations, OuterProducts, normal_equations_of
from simfluence.ridge.problem import (
    Array,
    BoolArray,
    RidgeProblem,
    RidgeSolution,
    norm_bound,
    off_mean,
    penalised_rank,
    probes,
)

_CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**30}  # systems held at once; on a CPU they should stay in cache


def solve_primal(
    problem: RidgeProblem, penalty: Array, device: torch.device, outer: OuterProducts | None = None
) -> RidgeSolution:
    """All test examples, a chunk at a time; ``penalty`` is [test]."""
    if problem.shared:
        return _solve_shared(problem, penalty, device, outer)
    outer = outer or OuterProducts(problem.counts)
    size = max(1, min(problem.n_tests, _CHUNK_BYTES[device.type] // (8 * problem.columns**2)))
    gram = np.empty((size, problem.columns, problem.columns))
    norm = norm_bound(problem)
    parts = []
    for start in range(0, problem.n_tests, size):
        chunk = slice(start, min(start + size, problem.n_tests))
        equations = normal_equations_of(problem.tests(chunk), outer, gram[: chunk.stop - start])
        parts.append(_solve_chunk(equations, penalty[chunk], norm[chunk], problem, chunk, device))
    return RidgeSolution(
        coefficients=np.concatenate([part[0] for part in parts], axis=-1),
        solver="primal",
        singular=np.concatenate([part[1] for part in parts]),
        degrees_of_freedom=np.concatenate([part[2] for part in parts]),
        condition=np.concatenate([part[3] for part in parts]),
    )


def _solve_shared(
    problem: RidgeProblem, penalty: Array, device: torch.device, outer: OuterProducts | None
) -> RidgeSolution:
    """One design for all test examples: one factor a penalty."""
    equations, norm = normal_equations_of(problem, outer), norm_bound(problem)
    result = RidgeSolution(
        coefficients=np.empty((problem.blocks, problem.n, problem.n_tests)),
        solver="primal",
        singular=np.empty(problem.n_tests, bool),
        degrees_of_freedom=np.empty(problem.n_tests),
        condition=np.empty(problem.n_tests),
    )
    for value in np.unique(penalty):
        tests = np.flatnonzero(penalty == value)
        part = NormalEquations(equations.gram.copy(), equations.moment[tests])
        theta, singular, freedom, condition = _solve_chunk(
            part, np.array([value]), norm, problem, slice(0, 1), device
        )
        result.coefficients[..., tests] = theta
        result.singular[tests] = singular
        result.degrees_of_freedom[tests] = freedom
        result.condition[tests] = condition
    return result


def _solve_chunk(
    equations: NormalEquations,
    penalty: Array,
    norm: Array,
    problem: RidgeProblem,
    chunk: slice,
    device: torch.device,
) -> tuple[Array, BoolArray, Array, Array]:
    """(θ [block, n, test], singular, degrees of freedom, condition); ``equations.gram`` is overwritten."""
    p, k = problem.columns, problem.blocks
    gram = torch.from_numpy(equations.gram).to(device)
    moment = torch.from_numpy(equations.moment).to(device)
    weights = torch.from_numpy(penalty).to(device)
    gram.diagonal(dim1=-2, dim2=-1).add_(weights[:, None])
    if problem.pooled:
        for block in gram.unflatten(-1, (k, -1)).unflatten(-3, (k, -1)).diagonal(dim1=-4, dim2=-2).unbind(-1):
            block.sub_(weights[:, None, None] / problem.n)
    signs = torch.from_numpy(probes(p, problem.n_tests)[:, chunk]).to(device, torch.float64)
    probe = (signs.T if len(gram) > 1 else signs.T[:1])[..., None]
    pushed = off_mean(probe, k) if problem.pooled else probe
    sides = moment.T[None] if len(gram) == 1 else moment[..., None]  # [system, p, side]
    solved, singular = solve_positive(gram, torch.cat([sides, pushed], dim=-1))
    theta, probed = solved[..., :-1], solved[..., -1:]
    # tr((G + λP)⁻¹ G) = p − λ tr(P (G + λP)⁻¹ P), and E zᵀ M z = tr M for random signs z
    freedom = (
        p - penalised_rank(problem) + (pushed * (pushed - weights[:, None, None] * probed)).sum((-2, -1))
    )
    inverse_norm = probed.norm(dim=(-2, -1)) / pushed.norm(dim=(-2, -1))
    largest = torch.from_numpy(norm).to(device) + weights
    condition = torch.where(singular, torch.inf, largest * inverse_norm)
    flat = theta[0].T if len(gram) == 1 else theta[..., 0]
    coefficients = flat.T.reshape(k, problem.n, -1).cpu().numpy()
    return coefficients, singular.cpu().numpy(), freedom.cpu().numpy(), condition.cpu().numpy()


def solve_positive(system: torch.Tensor, sides: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S x = sides for symmetric positive semi-definite S [system, p, p], sides [system, p, c].

    Returns x, the smallest where S is singular to working precision, and where that is, bool [system].
    ``system`` is overwritten.
    """
    diagonal = system.diagonal(dim1=-2, dim2=-1).clone()
    if system.device.type == "cpu":  # LAPACK itself works in place, where torch copies three times
        solved, pivots = _solve_in_place(system.numpy(), sides.numpy())
    else:
        factor, failed = torch.linalg.cholesky_ex(system)
        pivots = factor.diagonal(dim1=-2, dim2=-1).amin(-1).masked_fill(failed > 0, 0.0)
        solved = torch.cholesky_solve(sides, factor)
    # a pivot at rounding level: Cholesky went through on noise alone
    singular = ~(pivots**2 >= 1e-13 * diagonal.amax(-1).clamp_min(torch.finfo(torch.float64).tiny))
    for z in torch.nonzero(singular).flatten():
        strict = system[z].tril(-1)  # the half that is not overwritten
        whole = strict + strict.T + diagonal[z].diag()
        solved[z] = torch.linalg.pinv(whole, hermitian=True, rtol=1e-12) @ sides[z]
    return solved, singular


def _solve_in_place(systems: Array, sides: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Cholesky solutions, and the smallest pivot of each (0 if it failed); upper halves are lost."""
    solved, pivots = np.empty_like(sides), np.zeros(len(systems))
    for z, system in enumerate(systems):
        factor, failed = lapack.dpotrf(system.T, lower=1, clean=0, overwrite_a=1)  # .T: Fortran's order
        if not failed:
            pivots[z] = factor.diagonal().min()
            solved[z] = lapack.dpotrs(factor, sides[z], lower=1)[0]
    return torch.from_numpy(solved), torch.from_numpy(pivots)


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
        parts.append(
            _solve_dual_chunk(problem.tests(chunk), penalty[chunk], norm[chunk], kernel, mean_row, signs)
        )
    return RidgeSolution(
        coefficients=np.concatenate([part[0] for part in parts], axis=-1),
        solver="dual",
        singular=np.concatenate([part[1] for part in parts]),
        degrees_of_freedom=np.concatenate([part[2] for part in parts]),
        condition=np.concatenate([part[3] for part in parts]),
    )


def _solve_dual_chunk(
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
