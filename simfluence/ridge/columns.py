"""The iterative solver on a CPU: sixteen test examples at a time, a thread each (the loops are kernels.py's).

What is solved, and how it is preconditioned and refined, is said in iterative.py.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.kernels.threads import SIMD_WIDTH, in_threads, padded_to_fours, slices
from simfluence.ridge.problem import Array, BoolArray, RidgeProblem

Vectors: TypeAlias = npt.NDArray[Any]  # of float64 or float32
Preconditioner: TypeAlias = tuple[Vectors, Vectors]

SINGLE_TOLERANCE = 3e-6  # what single precision reaches before rounding shows


class Design:
    """The counts as the kernels take them, in both precisions; shared by all test examples."""

    def __init__(self, problem: RidgeProblem) -> None:
        counts: sparse.csr_array = problem.counts
        sizes = np.diff(counts.indptr).astype(np.int64)
        self.indices, self.bounds = padded_to_fours(counts.indices, sizes, 0)
        self.counts = padded_to_fours(counts.data.astype(np.float64, copy=False), sizes, 0.0)[0]
        self.single_counts = self.counts.astype(np.float32)
        free = [not (scale == 1).all() for scale in problem.scales]
        self.scaled = np.where(free, np.cumsum(free) - 1, -1)


class Rows:
    """The rows of at most sixteen test examples: their scales and targets beside the common design."""

    def __init__(self, problem: RidgeProblem, design: Design) -> None:
        self.pooled, self.blocks = problem.pooled, problem.blocks
        self.n, self.width, self._design = problem.n, problem.n_tests, design
        free = np.flatnonzero(design.scaled >= 0).tolist()
        scales = np.zeros((problem.counts.shape[0], len(free), SIMD_WIDTH))
        for place, block in enumerate(free):
            scales[:, place, : self.width] = problem.scales[block]
        self._scales, self._single_scales = scales.ravel(), scales.ravel().astype(np.float32)
        self.target = _widened(problem.target).ravel()

    def in_both_precisions(
        self, chosen: npt.NDArray[np.int64] | None
    ) -> dict[np.dtype[Any], tuple[Any, ...]]:
        """``rows`` of the kernels; chosen : by their numbers, or None for all."""
        design = self._design
        if chosen is None:
            chosen = np.arange(len(design.bounds) - 1)
        pairs = (design.counts, self._scales), (design.single_counts, self._single_scales)
        return {
            scales.dtype: (chosen, design.indices, counts, design.bounds, scales, design.scaled)
            for counts, scales in pairs
        }


class Columns:
    """(G + λP) θ = m of at most sixteen test examples, for any λ [column], on all rows or the chosen ones.

    Vectors are flat [example, block, column], sixteen columns however few are in use (``width``).

    moment : m, such a vector.
    """

    def __init__(self, rows: Rows, chosen: npt.NDArray[np.int64] | None = None) -> None:
        from simfluence.kernels import conjugate_gradients as kernels

        self.kernels, self.pooled = kernels, rows.pooled
        self.blocks, self.n, self.width = rows.blocks, rows.n, rows.width
        self._rows = rows.in_both_precisions(chosen)
        self.moment = np.zeros(self.n * self.blocks * SIMD_WIDTH)
        self._diagonal = np.zeros(self.blocks * len(self.moment))
        self._mean = np.zeros(self.blocks**2 * SIMD_WIDTH if self.pooled else 0)
        doubles = self._rows[self.moment.dtype]
        self._found: dict[float, Vectors] = {}  # of a rough path, in units of m's largest number
        kernels.statistics(self.moment, self._diagonal, self._mean, rows.target, doubles)

    def flat(self, vectors: npt.NDArray[Any]) -> Array:
        """[block, n, column] as the vectors here."""
        return _widened(vectors.transpose(1, 0, 2)).ravel()

    def unflat(self, vectors: Vectors) -> Array:
        """[block, n, column]"""
        split = vectors.reshape(self.n, self.blocks, SIMD_WIDTH)[..., : self.width]
        return split.transpose(1, 0, 2).astype(np.float64, copy=False)

    def relative_norm(self, vectors: Vectors, reference: Array) -> Array:
        """‖v‖ / ‖reference‖ [column]; 0 where both are."""
        pair = (values.reshape(-1, SIMD_WIDTH)[:, : self.width] for values in (vectors, reference))
        above, below = (np.linalg.norm(values.astype(np.float64), axis=0) for values in pair)
        return np.asarray(above / np.maximum(below, 1e-300))

    def norm_bound(self) -> Array:
        """‖|X|ᵀ|X|‖_∞ ≥ ‖G‖₂ [column]"""
        sums = np.zeros_like(self.moment)
        self.kernels.absolute_row_sums(sums, self._rows[sums.dtype])
        return np.asarray(sums.reshape(-1, SIMD_WIDTH)[:, : self.width].max(axis=0))

    def preconditioner(self, penalty: Array) -> Preconditioner:
        """M⁻¹ for λ [column]: inverses of (G + λP)'s blocks, and of pooled averages' (or none)."""
        own, k = self._diagonal.copy(), self.blocks
        weights = _widened(penalty, filler=1.0)  # what is not in use is 0 at once
        self.kernels.invert_blocks(own, (1 - 1 / self.n if self.pooled else 1.0) * weights, k)
        if not self.pooled:
            return own, np.empty(0)
        mean = self._mean.copy()
        mean.reshape(k * k, -1)[:: k + 1] *= 1 + 1e-10
        self.kernels.invert_blocks(mean, np.zeros(SIMD_WIDTH), k)
        return own, mean

    def residual(
        self, side: Vectors, theta: Vectors, penalty: Array, preconditioner: Preconditioner
    ) -> tuple[Vectors, Array]:
        """r = side − (G + λP) θ in θ's precision, and its size √(rᵀM⁻¹r) [16]."""
        applied, rows, weights = np.empty_like(theta), self._rows[theta.dtype], _widened(penalty)
        self.kernels.apply(
            applied, np.empty(SIMD_WIDTH), theta, rows, weights.astype(theta.dtype), self.pooled
        )
        residual = np.subtract(side, applied, out=applied)
        return residual, self.size(residual, preconditioner)

    def size(self, residual: Vectors, preconditioner: Preconditioner) -> Array:
        """√(rᵀM⁻¹r) [16]"""
        size = np.empty(SIMD_WIDTH)
        self.kernels.measure(size, residual, *as_type(preconditioner, residual.dtype))
        return np.sqrt(np.maximum(size, 0.0))

    def iterate(
        self,
        theta: Vectors,
        residual: Vectors,
        penalty: Array,
        target: Array,
        limit: int,
        preconditioner: Preconditioner,
    ) -> tuple[int, BoolArray]:
        """Move θ until the residual's size is ``target`` [16]; (iterations, where it is [column])."""
        kind = theta.dtype
        inverse = as_type(preconditioner, kind)
        left, squared = np.empty(SIMD_WIDTH), target * target
        taken: int = self.kernels.conjugate_gradients(
            left, theta, residual, self._rows[kind], _widened(penalty).astype(kind), *inverse, squared, limit
        )
        return taken, (left <= squared)[: self.width]

    def solve_single(
        self, side: Vectors, penalty: Array, tolerance: float, limit: int, preconditioner: Preconditioner
    ) -> Vectors:
        """θ for another right side, in single precision."""
        theta, residual = np.zeros(len(side), np.float32), side.astype(np.float32)
        target = tolerance * self.size(residual, preconditioner)
        self.iterate(theta, residual, penalty, target, limit, preconditioner)
        return theta

    def solve(
        self,
        penalty: Array,
        tolerance: float,
        limit: int,
        preconditioner: Preconditioner,
        start: tuple[Array, Array] | None = None,
    ) -> tuple[Array, int, BoolArray, Array]:
        """(θ, iterations, converged, residual): single precision within refinement, then double precision.

        start : θ and its residual; None for zero.
        """
        theta, residual = start or (np.zeros_like(self.moment), self.moment)
        left = self.size(residual, preconditioner)
        target = tolerance * (left if start is None else self.size(self.moment, preconditioner))
        iterations, gains = 0, True
        while gains and (left > target).any() and iterations < limit:
            unit = self.unit(residual)
            correction, scaled = np.zeros(len(theta), np.float32), (residual / unit).astype(np.float32)
            wanted = np.maximum(0.5 * target, SINGLE_TOLERANCE * left) / unit[:SIMD_WIDTH]
            share = (limit - iterations + 1) // 2  # single precision may get nowhere
            taken, _ = self.iterate(correction, scaled, penalty, wanted, share, preconditioner)
            iterations += taken
            trial = theta + unit * correction
            new_residual, new = self.residual(self.moment, trial, penalty, preconditioner)
            better = (new < left) | (left == 0)
            gains = bool(((new < 0.1 * left) | (new <= target)).all())
            keep = np.resize(better, len(theta))
            theta, residual = np.where(keep, trial, theta), np.where(keep, new_residual, residual)
            left = np.where(better, new, left)
        if (left > target).any() and iterations < limit:
            theta, residual = theta.copy(), residual.copy()
            taken, done = self.iterate(theta, residual, penalty, target, limit - iterations, preconditioner)
            residual, left = self.residual(self.moment, theta, penalty, preconditioner)
            return theta, iterations + taken, done & (left <= 3 * target)[: self.width], residual
        return theta, iterations, (left <= target)[: self.width], residual

    def path(self, penalties: Array, tolerance: float, limit: int) -> tuple[Array, BoolArray]:
        """(θ [λ, block, n, column], converged [λ, column]), each λ from the next larger one's θ.

        In single precision where that reaches the tolerance (not in pooled problems: λPθ is a difference of
        large numbers), otherwise from what that found, if it did.
        """
        if tolerance < SINGLE_TOLERANCE or self.pooled:
            thetas, converged = self._exact_path(penalties, tolerance, limit)
        else:
            thetas, converged = self._rough_path(penalties, tolerance, limit)
            if (some := ~converged.all(axis=1)).any():
                thetas[some], converged[some] = self._exact_path(penalties[some], tolerance, limit)
        return np.stack([self.unflat(theta) for theta in thetas]), converged

    def _rough_path(self, penalties: Array, tolerance: float, limit: int) -> tuple[Array, BoolArray]:
        unit = self.unit(self.moment)
        side = (self.moment / unit).astype(np.float32)
        thetas = np.empty((len(penalties), len(side)), np.float32)
        converged, rows = np.empty((len(penalties), SIMD_WIDTH), bool), self._rows[side.dtype]
        self.kernels.path(thetas, converged, side, rows, self._diagonal, penalties, tolerance, limit)
        done = np.tile(converged, self.blocks * self.n)  # others begin anew
        self._found = dict(zip(penalties, np.where(done, thetas, 0), strict=True))
        return thetas * unit, converged[:, : self.width]

    def _exact_path(self, penalties: Array, tolerance: float, limit: int) -> tuple[Array, BoolArray]:
        thetas = np.empty((len(penalties), len(self.moment)))
        converged = np.empty((len(penalties), self.width), bool)
        unit = self.unit(self.moment)
        theta, residual, before = np.zeros_like(self.moment), self.moment, 0.0
        for number in np.argsort(-penalties):
            penalty = np.full(self.width, penalties[number])
            preconditioner = self.preconditioner(penalty)
            if penalties[number] in self._found:
                theta = unit * self._found[penalties[number]]
                residual, _ = self.residual(self.moment, theta, penalty, preconditioner)
            else:
                residual = residual + (before - penalties[number]) * self.penalised(theta)
            theta, _, converged[number], residual = self.solve(
                penalty, tolerance, limit, preconditioner, (theta, residual)
            )
            thetas[number], before = theta, penalties[number]
        return thetas, converged

    def penalised(self, theta: Array) -> Array:
        """P θ"""
        if not self.pooled:
            return theta
        split = theta.reshape(self.n, -1)
        return (split - split.mean(axis=0)).ravel()

    def unit(self, vectors: Array) -> Array:
        """The largest number of each column, as often as there are places."""
        largest = np.abs(vectors.reshape(-1, SIMD_WIDTH)).max(axis=0)
        return np.resize(np.maximum(largest, 1e-300), len(vectors))


def _widened(values: npt.NDArray[Any], filler: float = 0.0) -> Array:
    """[…, column] to sixteen columns."""
    wide = np.full((*values.shape[:-1], SIMD_WIDTH), filler)
    wide[..., : values.shape[-1]] = values
    return wide


def as_type(preconditioner: Preconditioner, kind: npt.DTypeLike) -> Preconditioner:
    own, average = preconditioner
    return own.astype(kind, copy=False), average.astype(kind, copy=False)


def all_rows(problem: RidgeProblem) -> list[Rows]:
    """The rows of all test examples, a few at a time."""
    design = Design(problem)
    return list(
        in_threads(lambda part: Rows(problem.tests(part), design), slices(problem.n_tests, SIMD_WIDTH))
    )
