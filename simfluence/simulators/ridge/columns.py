"""The iterative solver on a CPU: a few test examples at a time, a thread each (the loops are kernels.py's).

What is solved, how it is preconditioned and refined is what iterative.py does for GPUs.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from simfluence.simulators.loops import in_fours, pieces
from simfluence.simulators.ridge.blocks import inverse
from simfluence.simulators.ridge.problem import Array, BoolArray, RidgeProblem

SINGLE_TOLERANCE = 3e-6  # what single precision reaches before rounding shows
Vectors: TypeAlias = npt.NDArray[Any]
Preconditioner: TypeAlias = tuple[Array, Array | None]

_COLUMNS = (16, 64)  # at once: whole vectors, and what a core's caches hold


def column_blocks(tests: int) -> list[slice]:
    """Test examples for the threads."""
    share = -(-tests // (16 * torch.get_num_threads())) * 16
    return pieces(tests, int(np.clip(share, *_COLUMNS)))


class Design:
    """The counts' rows as the kernels take them, in both precisions; shared by all test examples."""

    def __init__(self, problem: RidgeProblem) -> None:
        counts: sparse.csr_array = problem.counts
        sizes = np.diff(counts.indptr).astype(np.int64)
        self.indices, self.bounds = in_fours(counts.indices, sizes, 0)
        self.counts = in_fours(counts.data, sizes, 0.0)[0]
        self.single_counts = self.counts.astype(np.float32)
        free = [not (scale == 1).all() for scale in problem.scales]
        self.scaled = np.where(free, np.cumsum(free) - 1, -1)


class Columns:
    """The systems of a few test examples, (G + λP) θ = m for any λ [column].

    moment : m, flat [example, block, column], as all vectors here. bound : of ‖G‖, [column].
    """

    def __init__(self, problem: RidgeProblem, design: Design) -> None:
        from simfluence.simulators.ridge import kernels

        self.kernels, self.pooled = kernels, problem.pooled
        self.blocks, self.n, self.width = problem.blocks, problem.n, problem.n_tests
        free = np.flatnonzero(design.scaled >= 0)
        scales = np.empty((problem.counts.shape[0], len(free), self.width))
        for place, block in enumerate(free):
            scales[:, place] = problem.scales[block]
        rows = self._kernel_rows(design, design.counts, scales)
        single = self._kernel_rows(design, design.single_counts, scales.astype(np.float32))
        self._rows_in = {np.dtype(np.float64): rows, np.dtype(np.float32): single}
        long = self.n * self.blocks * self.width
        self.moment, bound = np.zeros(long), np.zeros(long)
        diagonal = np.zeros(long * self.blocks)
        target = np.ascontiguousarray(problem.target).ravel()
        kernels.statistics(self.moment, diagonal, bound, target, rows)
        self.bound: Array = bound.reshape(-1, self.width).max(axis=0)
        k = self.blocks
        self._diagonal = diagonal.reshape(self.n, k, k, self.width).transpose(1, 2, 0, 3)
        self._mean = _mean_gram(problem) if problem.pooled else None

    def _kernel_rows(self, design: Design, counts: npt.NDArray[Any], scales: npt.NDArray[Any]) -> tuple:
        return design.indices, counts, design.bounds, scales.ravel(), design.scaled, self.width

    def unflat(self, vectors: npt.NDArray[Any]) -> Array:
        """[block, n, column]"""
        split = vectors.reshape(self.n, self.blocks, self.width)
        return np.ascontiguousarray(split.transpose(1, 0, 2), np.float64)

    def relative_norm(self, vectors: npt.NDArray[Any], reference: Array) -> Array:
        """‖v‖ / ‖reference‖ [column]; 0 where both are."""
        pair = (values.reshape(-1, self.width).astype(np.float64) for values in (vectors, reference))
        above, below = (np.linalg.norm(values, axis=0) for values in pair)
        return np.asarray(above / np.maximum(below, 1e-300))

    def preconditioner(self, penalty: Array) -> Preconditioner:
        """M⁻¹ as the kernels take it, for λ [column]."""
        own, average = inverse(
            torch.from_numpy(self._diagonal)[None],
            None if self._mean is None else torch.from_numpy(self._mean)[None],
            torch.from_numpy(penalty),
        )
        flat = own[0].permute(2, 0, 1, 3).contiguous().view(-1).numpy()
        return flat, None if average is None else average.contiguous().view(-1).numpy()

    def residual(
        self, side: Vectors, theta: Vectors, penalty: Array, preconditioner: Preconditioner
    ) -> tuple[Vectors, Array]:
        """r = side − (G + λP) θ in θ's precision, and its size √(rᵀM⁻¹r) [column]."""
        applied, rows = np.empty_like(theta), self._rows_in[theta.dtype]
        self.kernels.apply(applied, theta, rows, penalty.astype(theta.dtype), self.pooled)
        residual = np.subtract(side, applied, out=applied)
        return residual, self.size(residual, preconditioner)

    def size(self, residual: Vectors, preconditioner: Preconditioner) -> Array:
        """√(rᵀM⁻¹r) [column]"""
        still, size = np.zeros_like(residual), np.empty(self.width)
        none = np.zeros(self.width, residual.dtype)
        inverse = as_type(preconditioner, residual.dtype)
        self.kernels.advance(np.empty_like(residual), size, still, residual, still, still, none, *inverse)
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
        """Move θ until the residual's size is ``target`` [column]; (iterations, where it is)."""
        kind = theta.dtype
        inverse = as_type(preconditioner, kind)
        done: tuple[int, BoolArray] = self.kernels.conjugate_gradients(
            theta, residual, self._rows_in[kind], penalty.astype(kind), *inverse, target, limit
        )
        return done

    def solve_single(
        self, side: Vectors, penalty: Array, tolerance: float, limit: int, preconditioner: Preconditioner
    ) -> Vectors:
        """θ for another right side, in single precision."""
        theta, residual = np.zeros(len(side), np.float32), side.astype(np.float32)
        target = tolerance * self.size(residual, preconditioner)
        self.iterate(theta, residual, penalty, target, limit, preconditioner)
        return theta

    def solve(
        self, penalty: Array, tolerance: float, limit: int, preconditioner: Preconditioner
    ) -> tuple[Array, int, BoolArray, Array]:
        """(θ, iterations, converged, residual): single precision within refinement, then double precision."""
        theta, residual = np.zeros_like(self.moment), self.moment.copy()
        left = self.size(residual, preconditioner)
        target, iterations, gains = tolerance * left, 0, True
        while gains and (left > target).any() and iterations < limit:
            unit = self.unit(residual)
            correction, scaled = np.zeros(len(theta), np.float32), (residual / unit).astype(np.float32)
            wanted = np.maximum(0.5 * target, SINGLE_TOLERANCE * left) / unit[: self.width]
            taken, _ = self.iterate(correction, scaled, penalty, wanted, limit - iterations, preconditioner)
            iterations += taken
            trial = theta + unit * correction
            new_residual, new = self.residual(self.moment, trial, penalty, preconditioner)
            better = (new < left) | (left == 0)
            gains = bool(((new < 0.1 * left) | (new <= target)).all())
            keep = np.resize(better, len(theta))
            theta, residual = np.where(keep, trial, theta), np.where(keep, new_residual, residual)
            left = np.where(better, new, left)
        if (left > target).any() and iterations < limit:
            taken, done = self.iterate(theta, residual, penalty, target, limit - iterations, preconditioner)
            residual, _ = self.residual(self.moment, theta, penalty, preconditioner)
            return theta, iterations + taken, done, residual
        return theta, iterations, left <= target, residual

    def path(self, penalties: Array, tolerance: float, limit: int) -> tuple[Array, BoolArray]:
        """(θ [λ, block, n, column], converged [λ, column]), each λ from the next larger one's θ.

        In single precision, where that can reach the tolerance; converged is then where the residual
        itself, not its recurrence, says so too.
        """
        thetas = np.empty((len(penalties), self.blocks, self.n, self.width))
        converged = np.empty((len(penalties), self.width), bool)
        unit = self.unit(self.moment)
        side = (self.moment / unit).astype(np.float32)
        theta = np.zeros_like(side)
        for number in np.argsort(-penalties):
            penalty = np.full(self.width, penalties[number])
            preconditioner = self.preconditioner(penalty)
            if tolerance < SINGLE_TOLERANCE:
                exact, _, converged[number], _ = self.solve(penalty, tolerance, limit, preconditioner)
                thetas[number] = self.unflat(exact)
                continue
            target = tolerance * self.size(side, preconditioner)
            residual, _ = self.residual(side, theta, penalty, preconditioner)
            self.iterate(theta, residual, penalty, target, limit, preconditioner)
            _, left = self.residual(side, theta, penalty, preconditioner)
            converged[number] = left <= 3 * target
            thetas[number] = self.unflat(theta * unit)
        return thetas, converged

    def unit(self, vectors: Array) -> Array:
        """The largest number of each column, as often as there are places."""
        largest = np.abs(vectors.reshape(-1, self.width)).max(axis=0)
        return np.resize(np.maximum(largest, 1e-300), len(vectors))


def as_type(preconditioner: Preconditioner, kind: npt.DTypeLike) -> tuple[Vectors, Vectors | None]:
    own, average = preconditioner
    return own.astype(kind, copy=False), None if average is None else average.astype(kind, copy=False)


def _mean_gram(problem: RidgeProblem) -> Array:
    """NᵀGN, N = I_k ⊗ 1/√n, [k, k, column]."""
    total = np.square(np.asarray(problem.counts.sum(axis=1))) / problem.n
    scales = problem.scales
    mean = np.stack([np.stack([total @ (a * b) for b in scales]) for a in scales])
    return np.broadcast_to(mean, (*mean.shape[:2], problem.n_tests)).copy()
