"""Conjugate gradients for many systems (G_z + λ_z P) θ = m_z at once.

Products with G go through the sparse counts of all test examples together,

    G v = Σ_j Uᵀ s_j (Σ_l s_l U v_l).

Preconditioned with the inverses of the k × k diagonal blocks of G + λP, one an example: an example's
own coefficients are nearly collinear (s is nearly constant along a run), while those of different
examples are nearly orthogonal where curricula are shuffled, so that a few dozen iterations reach
rounding level. Pooled problems get the same for the averages of the blocks, on which λP vanishes.

Most iterations run in single precision, which is twice to six times as fast, inside an iterative
refinement whose residuals are double: the answer is as exact as that of a factorization.

On CPUs a thread takes sixteen test examples through compiled loops (``columns``, ``kernels``); on GPUs torch
takes more of them at once (``gpu``).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from simfluence.kernels.threads import SIMD_WIDTH, in_threads, slices
from simfluence.ridge.columns import (
    Columns,
    Design,
    Rows,
    is_compiled_for,
)
from simfluence.ridge.gpu import (
    Regressions,
    columns_at_once,
    conjugate_gradients,
    solve_systems,
)
from simfluence.ridge.problem import (
    Array,
    BoolArray,
    Convergence,
    RidgeProblem,
    RidgeSolution,
    off_mean,
    penalised_rank,
    probes,
)
from simfluence.ridge.products import CountProducts

TOLERANCE = 3e-11
MAX_ITERATIONS = 400
_PROBE_TOLERANCE = 5e-2  # for diagnostics: what vᵀθ errs by is its square, less than by one random probe v


Part: TypeAlias = tuple[Array, Array, float, BoolArray, int]
"""degrees of freedom, condition, residual, converged, iterations"""


def solve_iterative(
    problem: RidgeProblem,
    penalty: Array,
    device: torch.device,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> RidgeSolution:
    """All test examples, a few at a time; ``penalty`` is [test], positive."""
    signs = probes(problem.columns, problem.n_tests)
    coefficients = np.empty((problem.blocks, problem.n, problem.n_tests))
    common = tolerance, max_iterations
    if is_compiled_for(device):
        design = Design(problem)

        def solve_part(chunk: slice) -> Part:
            columns = Columns(Rows(problem.tests(chunk), design))
            theta = coefficients[..., chunk]
            return _solve_columns(theta, columns, penalty[chunk], signs[:, chunk], *common)

        parts = list(in_threads(solve_part, slices(problem.n_tests, SIMD_WIDTH)))
    else:
        products = CountProducts(problem.counts, device)
        parts = [
            _solve_chunk(
                coefficients[..., tests],
                problem.tests(tests),
                penalty[tests],
                products,
                signs[:, tests],
                *common,
            )
            for tests in slices(problem.n_tests, columns_at_once(problem))
        ]
    freedoms, conditions, residuals, converged, iterations = zip(*parts, strict=True)
    failed = ~np.concatenate(converged)
    return RidgeSolution(
        coefficients=coefficients,
        solver="iterative",
        singular=np.zeros(problem.n_tests, bool),
        degrees_of_freedom=np.concatenate(freedoms),
        condition=np.concatenate(conditions),
        convergence=Convergence(tolerance, max(iterations), float(max(residuals)), int(failed.sum())),
    )


def _solve_columns(
    out: Array,
    columns: Columns,
    penalty: Array,
    signs: npt.NDArray[np.int8],
    tolerance: float,
    max_iterations: int,
) -> Part:
    """θ [block, n, test] goes into ``out``."""
    k, width = columns.blocks, columns.width
    preconditioner = columns.preconditioner(penalty)
    theta, iterations, converged, left = columns.solve(penalty, tolerance, max_iterations, preconditioner)
    probe = signs.reshape(k, -1, width)
    pushed = probe - probe.mean(axis=1, keepdims=True) if columns.pooled else probe
    side = columns.flat(pushed)
    rough = columns.solve_single(side, penalty, _PROBE_TOLERANCE, max_iterations, preconditioner)
    probed = columns.unflat(rough)
    free = k if columns.pooled else 0
    freedom = free + (pushed * (pushed - penalty * probed)).sum((0, 1))
    condition = (columns.norm_bound() + penalty) * columns.relative_norm(rough, side)
    residual = float(columns.relative_norm(left, columns.moment).max())
    out[:] = columns.unflat(theta)
    return freedom, condition, residual, converged, iterations


def _solve_chunk(
    out: Array,
    problem: RidgeProblem,
    penalty: Array,
    products: CountProducts,
    signs: npt.NDArray[np.int8],
    tolerance: float,
    max_iterations: int,
) -> Part:
    k = problem.blocks
    device = products.device
    weights = torch.from_numpy(penalty).to(device)
    regressions = Regressions(problem, products)
    systems, moment = regressions.systems(weights[None]), regressions.moment[None]
    theta, converged, iterations, left = solve_systems(systems, moment, tolerance, max_iterations)
    residual = left.norm(dim=1) / moment.norm(dim=1).clamp_min(1e-300)
    probe = torch.from_numpy(signs).to(device, torch.float64)[None]
    pushed = off_mean(probe, k) if problem.pooled else probe
    rough, _, _ = conjugate_gradients(systems.single(), pushed.float(), _PROBE_TOLERANCE, max_iterations)
    probed = rough.double()
    freedom = problem.columns - penalised_rank(problem) + (pushed * (pushed - weights * probed)).sum((0, 1))
    condition = (regressions.norm_bound() + weights) * probed.norm(dim=(0, 1)) / pushed.norm(dim=(0, 1))
    out[:] = theta[0].reshape(k, problem.n, -1).cpu().numpy()
    return (
        freedom.cpu().numpy(),
        condition.cpu().numpy(),
        float(residual.max()),
        converged[0].cpu().numpy(),
        iterations,
    )
