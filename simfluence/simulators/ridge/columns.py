"""The iterative solver on a CPU: a few test examples at a time, a thread each (the loops are kernels.py's).

What is solved, how it is preconditioned and refined is what iterative.py does for GPUs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from simfluence.simulators.loops import in_fours, pieces
from simfluence.simulators.ridge.blocks import inverse
from simfluence.simulators.ridge.problem import Array, BoolArray, RidgeProblem

SINGLE_TOLERANCE = 3e-6  # what single precision reaches before rounding shows
_COLUMNS = (16, 32)  # at once: whole vectors, and what a core's caches hold


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
        self._rows = self._kernel_rows(design, design.counts, scales)
        self._single_rows = self._kernel_rows(design, design.single_counts, scales.astype(np.float32))
        long = self.n * self.blocks * self.width
        self.moment, bound = np.zeros(long), np.zeros(long)
        diagonal = np.zeros(long * self.blocks)
        target = np.ascontiguousarray(problem.target).ravel()
        kernels.statistics(self.moment, diagonal, bound, target, self._rows)
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

    def preconditioner(self, penalty: Array) -> tuple[Array, Array | None]:
        """M⁻¹ as the kernels take it, for λ [column]."""
        own, average = inverse(
            torch.from_numpy(self._diagonal)[None],
            None if self._mean is None else torch.from_numpy(self._mean)[None],
            torch.from_numpy(penalty),
        )
        flat = own[0].permute(2, 0, 1, 3).contiguous().view(-1).numpy()
        return flat, None if average is None else average.contiguous().view(-1).numpy()

    def residual(self, theta: Array, penalty: Array) -> Array:
        """m − (G + λP) θ"""
        applied = np.empty_like(theta)
        self.kernels.apply(applied, theta, self._rows, penalty, self.pooled)
        return np.subtract(self.moment, applied, out=applied)

    def solve_single(
        self,
        side: npt.NDArray[Any],
        penalty: Array,
        tolerance: float | Array,
        limit: int,
        preconditioner: tuple[Array, Array | None],
    ) -> tuple[npt.NDArray[np.float32], int, BoolArray]:
        """(θ, iterations, converged) for another right side, in single precision."""
        own, average = preconditioner
        found = np.zeros(len(side), np.float32)
        taken, done = self.kernels.conjugate_gradients(
            found,
            side.astype(np.float32),
            self._single_rows,
            penalty.astype(np.float32),
            own.astype(np.float32),
            None if average is None else average.astype(np.float32),
            np.broadcast_to(np.asarray(tolerance, np.float64), self.width),
            limit,
        )
        return found, taken, done

    def size(self, residual: Array, preconditioner: tuple[Array, Array | None]) -> Array:
        """√(rᵀM⁻¹r) [column]"""
        nothing, size = np.zeros_like(residual), np.empty(self.width)
        still = np.zeros(self.width)
        self.kernels.advance(
            np.empty_like(residual), size, nothing, residual, nothing, nothing, still, *preconditioner
        )
        return np.sqrt(np.maximum(size, 0.0))

    def solve(
        self, penalty: Array, tolerance: float, limit: int, preconditioner: tuple[Array, Array | None]
    ) -> tuple[Array, int, BoolArray, Array]:
        """(θ, iterations, converged, residual): single precision within refinement, then double precision."""
        theta, residual = np.zeros_like(self.moment), self.moment.copy()
        left = self.size(residual, preconditioner)
        target, iterations, gains = tolerance * left, 0, True
        while gains and (left > target).any() and iterations < limit:
            wanted = np.clip(0.5 * target / np.maximum(left, 1e-300), SINGLE_TOLERANCE, 1.0)
            unit = np.maximum(np.abs(residual.reshape(-1, self.width)).max(axis=0), 1e-300)
            scaled = (residual.reshape(-1, self.width) / unit).ravel()
            correction, taken, _ = self.solve_single(
                scaled, penalty, wanted, limit - iterations, preconditioner
            )
            iterations += taken
            trial = theta + (correction.reshape(-1, self.width) * unit).ravel()
            new_residual = self.residual(trial, penalty)
            new = self.size(new_residual, preconditioner)
            better = (new < left) | (left == 0)
            gains = bool(((new < 0.1 * left) | (new <= target)).all())
            if better.all():
                theta, residual, left = trial, new_residual, new
            else:
                keep = np.tile(better, len(theta) // self.width)
                theta, residual = np.where(keep, trial, theta), np.where(keep, new_residual, residual)
                left = np.where(better, new, left)
        if (left > target).any() and iterations < limit:
            wanted = np.minimum(target / np.maximum(left, 1e-300), 1.0)
            own, average = preconditioner
            taken, done = self.kernels.conjugate_gradients(
                theta, residual, self._rows, penalty, own, average, wanted, limit - iterations
            )
            return theta, iterations + taken, done, self.residual(theta, penalty)
        return theta, iterations, left <= target, residual


def _mean_gram(problem: RidgeProblem) -> Array:
    """NᵀGN, N = I_k ⊗ 1/√n, [k, k, column]."""
    total = np.square(np.asarray(problem.counts.sum(axis=1))) / problem.n
    scales = problem.scales
    mean = np.stack([np.stack([total @ (a * b) for b in scales]) for a in scales])
    return np.broadcast_to(mean, (*mean.shape[:2], problem.n_tests)).copy()
