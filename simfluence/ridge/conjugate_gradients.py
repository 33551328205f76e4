"""Conjugate gradients for many systems (G_z + λ_z P) θ = m_z at once.

Products with G go through the sparse counts of all test examples together,

    G v = Σ_j Uᵀ s_j (Σ_l s_l U v_l).

Preconditioned with the inverses of the k × k diagonal blocks of G + λP, one an example: an example's
own coefficients are nearly collinear (s is nearly constant along a run), while those of different
examples are nearly orthogonal where curricula are shuffled, so that a few dozen iterations reach
rounding level. Pooled problems get the same for the averages of the blocks, on which λP vanishes.

Most iterations run in single precision, which is twice to six times as fast, inside an iterative
refinement whose residuals are double: the answer is as exact as that of a factorization.

A thread takes sixteen test examples through compiled loops (columns.py, kernels/conjugate_gradients.py). There is no
path for GPUs: the one there was took 1.6 × less time than sixteen cores at 10 000 examples, and more below a
thousand (analysis/benchmarks/gpu.md).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from simfluence.kernels.threads import SIMD_WIDTH, in_threads, slices
from simfluence.ridge.columns import (
    Columns,
    Design,
    Rows,
)
from simfluence.ridge.problem import (
    Array,
    BoolArray,
    Convergence,
    RidgeProblem,
    RidgeSolution,
    probes,
)

TOLERANCE = 3e-11
MAX_ITERATIONS = 400
_PROBE_TOLERANCE = 5e-2  # for diagnostics: what vᵀθ errs by is its square, less than by one random probe v


Part: TypeAlias = tuple[Array, Array, float, BoolArray, int]
"""degrees of freedom, condition, residual, converged, iterations"""


def solve_iterative(
    problem: RidgeProblem,
    penalty: Array,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> RidgeSolution:
    """All test examples, sixteen at a time; ``penalty`` is [test], positive."""
    signs = probes(problem.columns, problem.n_tests)
    coefficients = np.empty((problem.blocks, problem.n, problem.n_tests))
    design = Design(problem)

    def solve_part(chunk: slice) -> Part:
        columns = Columns(Rows(problem.tests(chunk), design))
        theta = coefficients[..., chunk]
        return _solve_columns(theta, columns, penalty[chunk], signs[:, chunk], tolerance, max_iterations)

    parts = list(in_threads(solve_part, slices(problem.n_tests, SIMD_WIDTH)))
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
