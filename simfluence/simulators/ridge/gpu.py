"""The iterative solver on a GPU: conjugate gradients in torch, for many test examples at once.

Products with G go through the sparse counts of all test examples together. Vectors are [group, p, column], a
column a system (test × λ); there is one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from simfluence.simulators.ridge.blocks import inverse
from simfluence.simulators.ridge.columns import SINGLE_TOLERANCE
from simfluence.simulators.ridge.problem import (
    Array,
    RidgeProblem,
    off_mean,
)
from simfluence.simulators.ridge.products import CountProducts

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


def sparse_systems(problem: RidgeProblem, penalty: Array, products: CountProducts) -> Systems:
    """Columns test × λ, the penalties' grid outermost; ``penalty`` is [λ, test]."""
    diagonal, mean = _diagonal_blocks(problem)

    def columns(values: Array) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(products.device)
        if problem.shared or len(penalty) == 1:
            return tensor
        return tensor.repeat(*[1] * (tensor.ndim - 1), len(penalty))

    return Systems(
        products,
        [None if (scale == 1).all() else columns(scale) for scale in problem.scales],
        torch.from_numpy(penalty.ravel()).to(products.device),
        columns(diagonal)[None],
        columns(mean)[None] if problem.pooled else None,
    )


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
        return theta, done, iterations + taken, moment - systems.apply(theta)
    return theta, left <= target, iterations, residual


def moments(problem: RidgeProblem) -> Array:
    """m = Xᵀy, [p, test]."""
    return np.concatenate([problem.counts.T @ (scale * problem.target) for scale in problem.scales])


def _diagonal_blocks(problem: RidgeProblem) -> tuple[Array, Array]:
    """The k × k diagonal blocks of G [k, k, n, column] and NᵀGN [k, k, column]."""
    squares = problem.counts.copy()
    squares.data = squares.data**2
    total = np.square(np.asarray(problem.counts.sum(axis=1))) / problem.n
    k = problem.blocks
    rows = [[problem.scales[a] * problem.scales[b] for b in range(k)] for a in range(k)]
    diagonal = np.stack([np.stack([squares.T @ product for product in row]) for row in rows])
    mean = np.stack([np.stack([total @ product for product in row]) for row in rows])
    return diagonal, mean


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
