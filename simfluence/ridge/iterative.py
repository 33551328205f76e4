"""Ridge regression by conjugate gradients: sixteen test examples at a time, one thread each.

    primal  (XᵀX + λP) θ = Xᵀy
    dual    (XXᵀ + λI) α = y,  θ = Xᵀα        where there are few rows, with small batches

The preconditioner M is the part of the matrix that is within an example (within a row, in the dual): an
example's own two coefficients are nearly collinear, as losses are nearly constant along a run, while those of
different examples are nearly orthogonal where curricula are shuffled.

Most iterations run in single precision, which takes less than half the time, inside a refinement whose
residuals are of double precision. Where single precision gets no further, double precision goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.kernels.threads import SIMD_WIDTH, in_threads, slices
from simfluence.ridge.problem import Array, RidgeProblem, RidgeSolution, uses_dual

MAX_ITERATIONS = 2000
_SINGLE = 3e-6  # the residual's least relative size in single precision, before rounding shows


def solve_iterative(problem: RidgeProblem, penalties: Sequence[float], tolerance: float) -> RidgeSolution:
    """All test examples for all penalties > 0, each begun where the next larger penalty ended.

    tolerance : the residual's size √(rᵀM⁻¹r) relative to that at zero.
    """
    matrix, dual = _matrix(problem)
    coefficients = np.empty((len(penalties), problem.blocks, problem.n, problem.n_tests))
    residual = np.empty((len(penalties), problem.n_tests))

    def solve_part(part: slice) -> int:
        systems, most = _Systems(problem.tests(part), matrix, dual), 0
        for number in np.argsort(penalties)[::-1]:
            solution, residual[number, part], taken = systems.solve(float(penalties[number]), tolerance)
            coefficients[number, :, :, part] = systems.coefficients(solution)
            most = max(most, taken)
        return most

    taken = list(in_threads(solve_part, slices(problem.n_tests, SIMD_WIDTH)))
    return RidgeSolution(coefficients, "iterative", np.zeros(problem.n_tests, bool), residual, max(taken))


def _matrix(problem: RidgeProblem) -> tuple[sparse.csr_array, bool]:
    """(U, False), or (UUᵀ, True) where an iteration with that moves fewer numbers."""
    counts = problem.counts.copy()
    counts.sum_duplicates()
    if uses_dual(problem):
        products = (counts @ counts.T).tocsr()
        if products.nnz < 2 * counts.nnz + 4 * problem.columns:
            return products, True
    return counts, False


class _Systems:
    """The systems of at most sixteen test examples.

    Vectors are [item · block, 16], items being examples (primal) or rows (dual, with one block). The kernels
    take them flat.
    """

    def __init__(self, problem: RidgeProblem, matrix: sparse.csr_array, dual: bool) -> None:
        from simfluence.kernels import conjugate_gradients as kernels  # compiled when first used

        self._kernels, self._problem, self._dual = kernels, problem, dual
        scales = [_columns(scale, problem.n_tests) for scale in problem.scales]
        target = _columns(problem.target, problem.n_tests)
        blocks, items = (1, len(target)) if dual else (problem.blocks, problem.n)
        self._penalised = (items - problem.free) * blocks
        self._systems: dict[Any, Any] = {}
        for kind in (np.dtype(np.float32), np.dtype(np.float64)):
            numbers = [matrix.data.astype(kind), *(scale.astype(kind).ravel() for scale in scales), None]
            design = (matrix.indices, numbers[0], matrix.indptr, numbers[1], numbers[2])
            self._systems[kind] = design, dual, self._penalised * SIMD_WIDTH
        if dual:
            self._side = target
            self._within = (matrix.diagonal()[:, None] * sum(scale * scale for scale in scales))[:, None]
        else:
            sides = np.stack([matrix.T @ (scale * target) for scale in scales], axis=1)
            self._side = sides.reshape(-1, SIMD_WIDTH)
            squares, pairs = matrix.power(2).T, itertools.combinations_with_replacement(scales, 2)
            self._within = np.stack([squares @ (a * b) for a, b in pairs], axis=1)
        self._found, self._residual, self._penalty = np.zeros_like(self._side), self._side, 0.0

    def solve(self, penalty: float, tolerance: float) -> tuple[Array, Array, int]:
        """(solution, relative residual [test], iterations); begins at the solution for the last penalty."""
        found, residual = self._found, self._residual.copy()
        residual[: self._penalised] += (self._penalty - penalty) * found[: self._penalised]
        inverse = self._inverse(penalty)
        whole = np.maximum(self._size(self._side, inverse), 1e-300)
        left, iterations = self._size(residual, inverse), 0
        for kind, system in self._systems.items():
            single, gains = kind == np.float32, True
            while gains and (left > tolerance * whole).any() and iterations < MAX_ITERATIONS:
                # the residual in a unit of its largest number, which suits single precision
                unit = np.maximum(np.abs(residual).max(axis=0), 1e-300)
                scaled = (residual / unit).astype(kind).ravel()
                correction, rest = np.zeros_like(scaled), MAX_ITERATIONS - iterations
                limit = rest - rest // 2 if single else rest  # single precision may get nowhere
                target = np.square(np.maximum(0.5 * tolerance * whole, _SINGLE * left * single) / unit)
                iterations += self._kernels.conjugate_gradients(
                    correction, scaled, system, penalty, inverse.astype(kind), target, limit
                )
                trial = found + correction.reshape(-1, SIMD_WIDTH) * unit
                after = self._side - self._product(trial, penalty)
                new = self._size(after, inverse)
                better = new < left
                gains = bool(((new < 0.1 * left) | (new <= tolerance * whole)).all())
                found, residual = np.where(better, trial, found), np.where(better, after, residual)
                left = np.where(better, new, left)
        self._found, self._residual, self._penalty = found, residual, penalty
        return found, (left / whole)[: self._problem.n_tests], iterations

    def coefficients(self, found: Array) -> Array:
        """A solution as [block, n, test]."""
        problem = self._problem
        if not self._dual:
            vectors = found.reshape(problem.n, problem.blocks, SIMD_WIDTH)
            return vectors.transpose(1, 0, 2)[..., : problem.n_tests]
        return problem.from_dual(found[:, : problem.n_tests])

    def _product(self, vectors: Array, penalty: float) -> Array:
        """The matrix times vectors, in double precision."""
        out = np.empty(vectors.size)
        self._kernels.apply(out, vectors.ravel(), self._systems[vectors.dtype], penalty)
        return out.reshape(vectors.shape)

    def _size(self, residual: Array, inverse: Array) -> Array:
        """√(rᵀM⁻¹r) [16]"""
        still, out = np.zeros(SIMD_WIDTH), np.zeros(residual.size)
        size = self._kernels.precondition(out, residual.flatten(), out, still, inverse)
        return np.sqrt(np.maximum(size, 0.0))

    def _inverse(self, penalty: float) -> Array:
        """M⁻¹, flat [item, 1 or 3, 16] as the kernels take it; 0 where M is 0."""
        weights = np.full((len(self._within), 1), penalty)
        weights[len(weights) - self._problem.free :] = 0.0
        a, adjugate = self._within[:, 0] + weights, np.ones_like(self._within)
        determinant = a
        if self._within.shape[1] == 3:
            cross, b = self._within[:, 1], self._within[:, 2] + weights
            adjugate = np.stack([b, -cross, a], axis=1)
            determinant = np.maximum(a * b - cross * cross, 1e-14 * a * b)  # not below rounding
        divisor = np.broadcast_to(determinant[:, None], adjugate.shape)
        return np.divide(adjugate, divisor, out=np.zeros_like(adjugate), where=divisor > 0).ravel()


def _columns(values: npt.NDArray[Any], width: int) -> Array:
    """[row, test], or [row, 1] for all, as [row, 16] with zeros in columns that are not in use."""
    wide = np.zeros((len(values), SIMD_WIDTH))
    wide[:, :width] = values
    return wide
