"""Coefficients for a grid of penalties, for choosing among them.

Shared designs are diagonalised once, G = V D Vᵀ: θ_λ = V (D + λ)⁻¹ Vᵀ m for every λ. Others go
through conjugate gradients with all λ at once. What does not reach the tolerance is factorized, where
that is possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from simfluence.simulators.loops import in_threads
from simfluence.simulators.ridge.columns import SINGLE_TOLERANCE, Columns, Rows, all_rows, is_compiled_for
from simfluence.simulators.ridge.dual import solve_dual
from simfluence.simulators.ridge.gpu import (
    Systems,
    conjugate_gradients,
    moments,
    solve_systems,
    sparse_systems,
)
from simfluence.simulators.ridge.normal import normal_equations_of
from simfluence.simulators.ridge.primal import solve_primal
from simfluence.simulators.ridge.problem import Array, BoolArray, RidgeProblem, off_mean
from simfluence.simulators.ridge.products import CountProducts

IntArray = npt.NDArray[np.int64]

FACTOR_COLUMNS = 8000  # the widest system that is factorized where iterations fail
PATH_TOLERANCE = 3e-6  # rollout errors are then good to about a part in a thousand
_LIMIT = 150  # of iterations
_SHARED_COLUMNS = 5000  # wider Gram matrices cost more to diagonalise than to iterate with
_CHUNK_COLUMNS = 128


def solve_path(
    problem: RidgeProblem, penalties: Array, device: torch.device, tolerance: float = PATH_TOLERANCE
) -> Array:
    """θ [λ, block, n, test] for positive penalties [λ], to a relative ``tolerance``."""
    everything = np.arange(problem.counts.shape[0])
    return next(solve_paths(problem, [everything], penalties, device, tolerance))


def solve_paths(
    problem: RidgeProblem,
    rows: Sequence[IntArray],
    penalties: Array,
    device: torch.device,
    tolerance: float = PATH_TOLERANCE,
) -> Iterator[Array]:
    """The same on some of the rows, by their numbers: one answer for every choice of rows."""
    decompose = problem.shared and problem.columns <= _SHARED_COLUMNS
    compiled = all_rows(problem) if not decompose and is_compiled_for(device) else []
    for chosen in rows:
        if decompose:
            yield _shared_path(problem.rows(chosen), penalties, device)
            continue
        if compiled:
            thetas, converged = _compiled_path(compiled, chosen, penalties, tolerance)
        else:
            thetas, converged = _torch_path(problem.rows(chosen), penalties, device, tolerance)
        if not converged.all():
            _factorize_others(thetas, converged, problem.rows(chosen), penalties, device)
        yield thetas


def _compiled_path(
    compiled: Sequence[Rows], chosen: IntArray, penalties: Array, tolerance: float
) -> tuple[Array, BoolArray]:
    def path(rows: Rows) -> tuple[Array, BoolArray]:
        return Columns(rows, chosen).path(penalties, tolerance, _LIMIT)

    thetas, converged = zip(*in_threads(path, compiled), strict=True)
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
        mean = torch.kron(
            torch.eye(k, dtype=torch.float64, device=device), torch.full((n, 1), n**-0.5, dtype=torch.float64)
        )
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
    size = max(1, _CHUNK_COLUMNS // paths)
    for start in range(0, tests, size):
        part = problem.tests(slice(start, start + size))
        grid = np.repeat(penalties[:, None], part.n_tests, axis=1)
        systems = sparse_systems(part, grid, products)
        moment = torch.from_numpy(np.tile(moments(part), (1, paths))).to(device)[None]
        if tolerance < SINGLE_TOLERANCE:
            theta, done, *_ = solve_systems(systems, moment, tolerance, _LIMIT)
        else:
            theta, done = _solve_single(systems.single(), moment.float(), tolerance)
        solved = theta[0].cpu().numpy().reshape(k, problem.n, paths, -1)
        thetas[..., start : start + size] = np.moveaxis(solved, 2, 0)
        converged[:, start : start + size] = done[0].cpu().numpy().reshape(paths, -1)
    return thetas, converged
