"""Normal equations, factorized: one Cholesky factor of p columns a test example.

(G + λ P) θ = m,    G = XᵀX,  m = Xᵀy
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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


@dataclass(frozen=True)
class Solution:
    """coefficients [test, p]; singular [test]: where only a minimum-norm solution exists."""

    coefficients: Array
    singular: BoolArray


def solve(
    equations: NormalEquations, penalty: float, center: Array | None = None, metric: Array | None = None
) -> Solution:
    """argmin_θ ‖X θ − y‖² + λ (θ − θ₀)ᵀ P (θ − θ₀) from normal equations, for each test example:

        (G + λ P) θ = m + λ P θ₀

    Parameters
    ----------
    penalty : λ ≥ 0.
    center : θ₀ [p]; None for zero.
    metric : P [p, p], positive semi-definite; None for the identity.
    """
    gram = torch.from_numpy(equations.gram)
    moment = torch.from_numpy(equations.moment)[..., None]
    if center is not None:
        pull = center if metric is None else metric @ center
        moment = moment + penalty * torch.from_numpy(pull)[:, None]
    if metric is None:
        system = gram.clone()
        system.diagonal(dim1=-2, dim2=-1).add_(penalty)
    else:
        system = gram + penalty * torch.from_numpy(metric)
    coefficients, singular = solve_positive(system, moment)
    return Solution(coefficients[..., 0].numpy(), singular.numpy())


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
