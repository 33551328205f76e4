"""The iterative solver on a GPU: conjugate gradients in torch, for many test examples at once.

Products with G go through the sparse counts of all test examples together. Vectors are [group, p, column], a
column a system (test × λ); there is one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement, product
from typing import TypeAlias

import numpy as np
import torch

from simfluence.ridge.blocks import inverse
from simfluence.ridge.columns import SINGLE_TOLERANCE
from simfluence.ridge.problem import (
    Array,
    RidgeProblem,
    off_mean,
)
from simfluence.ridge.products import CountProducts

_CHUNK_VALUES = 2**24  # of (rows + columns) × systems at once; some ten arrays of that size are held
_DROP = 0.6  # share of columns still to converge at which the others are left behind

Preconditioner: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]


class Systems:
    """(G + λP) v for [group, p, column], and what preconditions it.

    Parameters
    ----------
    scales : s, [row, column or 1] for each block; None for a block of ones.
    penalty : λ [column].
    diagonal : the k × k diagonal blocks of G, [group, k, k, n, column or 1].
    mean : NᵀGN for pooled systems, N = I_k ⊗ 1/√n, [group, k, k, column or 1]; else None.
    """

    def __init__(
        self,
        products: CountProducts,
        scales: Sequence[torch.Tensor | None],
        penalty: torch.Tensor,
        diagonal: torch.Tensor,
        mean: torch.Tensor | None,
    ) -> None:
        self.penalty, self.diagonal, self.mean = penalty, diagonal, mean
        self.blocks = diagonal.shape[1]
        self._products, self._scales = products, scales
        self._buffer = torch.empty(0, dtype=self.penalty.dtype, device=self.penalty.device)

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        """(G + λP) v"""
        pull = vectors
        if self.mean is not None:  # twice: rounding leaves an average, which the preconditioner would blow up
            pull = off_mean(off_mean(vectors, self.blocks), self.blocks)
        return self.gram(vectors).addcmul_(self.penalty, pull)

    def preconditioner(self) -> Preconditioner:
        """(G + λP)⁻¹ of the blocks of each example, and of the blocks' averages."""
        return inverse(self.diagonal, self.mean, self.penalty)

    def gram(self, vectors: torch.Tensor) -> torch.Tensor:
        """G v"""
        parts = vectors[0].unflatten(0, (self.blocks, -1))
        rows: torch.Tensor | None = None
        for scale, part in reversed(list(zip(self._scales, parts, strict=True))):
            product = self._products.forward(part)
            if rows is None:
                rows = product if scale is None else product.mul_(scale)
            else:
                rows = rows.add_(product) if scale is None else rows.addcmul_(product, scale)
        assert rows is not None
        out = torch.empty_like(vectors)
        by_block = out[0].unflatten(0, (self.blocks, -1))
        if self._buffer.shape != rows.shape:
            self._buffer = torch.empty_like(rows)
        for number, scale in enumerate(self._scales):
            weighted = rows if scale is None else torch.mul(rows, scale, out=self._buffer)
            by_block[number] = self._products.backward(weighted)
        return out

    def restricted(self, columns: torch.Tensor) -> Systems:
        """Those columns' systems; ``columns`` is bool [column]."""
        scales = [None if scale is None else _chosen(scale, columns) for scale in self._scales]
        mean = None if self.mean is None else _chosen(self.mean, columns)
        diagonal = _chosen(self.diagonal, columns)
        return Systems(self._products, scales, self.penalty[columns], diagonal, mean)

    def single(self) -> Systems:
        """The same in single precision."""
        scales = [None if scale is None else scale.float() for scale in self._scales]
        mean = None if self.mean is None else self.mean.float()
        return Systems(self._products, scales, self.penalty.float(), self.diagonal.float(), mean)


class Regressions:
    """Some test examples' regressions, on the device.

    scales : s, [row, test] or [row, 1] for each block; None for a block of ones.
    moment : m = Xᵀy, [p, test].
    """

    def __init__(self, problem: RidgeProblem, products: CountProducts) -> None:
        self.blocks, self.n, self.n_tests = problem.blocks, problem.n, problem.n_tests
        self.pooled = problem.pooled
        self._products = products
        self.scales = [
            None if _all_ones(scale) else _moved(scale, products.device) for scale in problem.scales
        ]
        target = _moved(problem.target, products.device)
        self.moment = torch.cat([products.backward(_times(scale, target)) for scale in self.scales])

    def systems(self, penalty: torch.Tensor) -> Systems:
        """Columns λ × test, the penalties' grid outermost; ``penalty`` is [λ, test]."""

        def repeated(values: torch.Tensor) -> torch.Tensor:
            return values if values.shape[-1] == 1 else values.tile(len(penalty))

        return Systems(
            self._products,
            [None if scale is None else repeated(scale) for scale in self.scales],
            penalty.flatten(),
            repeated(self._of_pairs(self._products.squares_backward))[None],
            repeated(self._of_pairs(self._mean))[None] if self.pooled else None,
        )

    def norm_bound(self) -> torch.Tensor:
        """‖|X|ᵀ|X|‖_∞ ≥ ‖G‖₂, [test] ([1] if shared)."""
        sizes = [None if scale is None else scale.abs() for scale in self.scales]
        total = self._products.total
        rows = torch.stack(torch.broadcast_tensors(*[_times(size, total) for size in sizes])).sum(0)
        sums = [self._products.backward(_times(size, rows)).amax(0) for size in sizes]
        return torch.stack(sums).amax(0)

    def _mean(self, products: torch.Tensor) -> torch.Tensor:
        """What an average of coefficients sees: Σ_rows (U 1)² s_a s_b / n, [test]."""
        return (self._products.total.square() * products).sum(0) / self.n

    def _of_pairs(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """reduce(s_a s_b) for all pairs of blocks, [k, k, …]."""
        ones, k = torch.ones_like(self._products.total), self.blocks
        found = {
            (a, b): reduce(_times(self.scales[a], _times(self.scales[b], ones)))
            for a, b in combinations_with_replacement(range(k), 2)
        }
        pairs = [found[min(a, b), max(a, b)] for a, b in product(range(k), repeat=2)]
        return torch.stack(torch.broadcast_tensors(*pairs)).unflatten(0, (k, k))


def columns_at_once(problem: RidgeProblem) -> int:
    """How many systems to solve together, in some gigabytes."""
    return max(1, _CHUNK_VALUES // (problem.counts.shape[0] + problem.columns))


def conjugate_gradients(
    systems: Systems,
    moment: torch.Tensor,
    tolerance: float | torch.Tensor,
    max_iterations: int,
    preconditioner: Preconditioner | None = None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Solve all systems; columns leave the work once all their groups have converged.

    Parameters
    ----------
    moment : m, [group, p, column].
    tolerance : of √(rᵀM⁻¹r) relative to its start, r the residual and M the preconditioner; a number or
        [group, column].
    preconditioner : of the systems, if at hand.

    Returns
    -------
    θ [group, p, column], bool [group, column] where the tolerance was reached, and iterations taken.
    """
    own, average = preconditioner or systems.preconditioner()
    k = systems.blocks
    theta = torch.zeros_like(moment)
    columns = torch.arange(moment.shape[2], device=moment.device)
    done = torch.zeros(moment.shape[0], moment.shape[2], dtype=torch.bool, device=moment.device)
    residual, found = moment.clone(), torch.zeros_like(moment)
    z = _precondition(residual, own, average, k)
    direction = z.clone()
    size = (residual * z).sum(1)
    target = tolerance**2 * size
    iteration = 0
    for iteration in range(max_iterations + 1):
        active = size > target
        if not active.any() or iteration == max_iterations:
            break
        if (busy := active.any(0)).sum() <= _DROP * len(columns):  # drop what has converged
            theta[:, :, columns], done[:, columns] = found, ~active
            columns, systems = columns[busy], systems.restricted(busy)
            kept = (part[..., busy] for part in (found, residual, direction, size, target, active))
            found, residual, direction, size, target, active = (part.contiguous() for part in kept)
            own = own[..., busy].contiguous()
            average = average if average is None else average[..., busy]
        applied = systems.apply(direction)
        curvature = (direction * applied).sum(1)
        step = torch.where(active & (curvature > 0), size / curvature, 0.0)[:, None]
        found.addcmul_(step, direction)
        residual.addcmul_(-step, applied)
        z = _precondition(residual, own, average, k)
        new = (residual * z).sum(1)
        direction.mul_(torch.where(active, new / size, 0.0)[:, None]).add_(z)
        size = torch.where(active, new, size)
    theta[:, :, columns], done[:, columns] = found, size <= target
    return theta, done, iteration


def solve_systems(
    systems: Systems,
    moment: torch.Tensor,
    tolerance: float,
    max_iterations: int,
) -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """Iterative refinement: residuals in double precision, corrections by single precision iterations,

        r = m − (G + λP) θ,    θ ← θ + solve(r),

    while that gains a factor of ten a round; what is left is iterated in double precision. Arguments and
    answers are as those of :func:`conjugate_gradients`; and the residual r.
    """
    exact = systems.preconditioner()
    rough = systems.single()
    rough_exact = (exact[0].float(), None if exact[1] is None else exact[1].float())

    def size(residual: torch.Tensor) -> torch.Tensor:
        """√(rᵀM⁻¹r) [group, column]"""
        return (residual * _precondition(residual, *exact, systems.blocks)).sum(1).clamp_min(0.0).sqrt()

    theta, residual = torch.zeros_like(moment), moment
    left = size(moment)
    target, iterations, gains = tolerance * left, 0, True
    while gains and (left > target).any() and iterations < max_iterations:
        wanted = (0.5 * target / left.clamp_min(1e-300)).clamp(SINGLE_TOLERANCE, 1.0)
        unit = residual.abs().amax(1, keepdim=True).clamp_min(1e-300)
        correction, _, taken = conjugate_gradients(
            rough, (residual / unit).float(), wanted.float(), max_iterations - iterations, rough_exact
        )
        iterations += taken
        trial = theta.addcmul(correction.double(), unit)
        new_residual = moment - systems.apply(trial)
        new = size(new_residual)
        better = (new < left) | (left == 0)
        gains = bool(((new < 0.1 * left) | (new <= target)).all())
        theta = torch.where(better[:, None], trial, theta)
        residual = torch.where(better[:, None], new_residual, residual)
        left = torch.where(better, new, left)
    if (left > target).any() and iterations < max_iterations:
        wanted = (target / left.clamp_min(1e-300)).clamp_max(1.0)
        correction, done, taken = conjugate_gradients(
            systems, residual, wanted, max_iterations - iterations, exact
        )
        theta = theta + correction
        residual = moment - systems.apply(theta)
        return theta, done & (size(residual) <= 3 * target), iterations + taken, residual
    return theta, left <= target, iterations, residual


def _all_ones(scale: Array) -> bool:
    return bool((scale.flat[0] == 1) if set(scale.strides) == {0} else (scale == 1).all())


def _moved(values: Array, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(device)


def _times(scale: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    return values if scale is None else scale * values


def _chosen(values: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return values if values.shape[-1] == 1 else values[..., columns]


def _precondition(
    residual: torch.Tensor, own: torch.Tensor, average: torch.Tensor | None, k: int
) -> torch.Tensor:
    """M⁻¹ r."""
    split = residual.unflatten(1, (k, -1))
    out = torch.empty_like(split)
    for a in range(k):
        torch.mul(own[:, a, 0], split[:, 0], out=out[:, a])
        for b in range(1, k):
            out[:, a].addcmul_(own[:, a, b], split[:, b])
    if average is not None:
        means = split.mean(2)  # Nᵀr / √n
        out += torch.einsum("gabc,gbc->gac", average, means)[:, :, None]
    return out.flatten(1, 2)
