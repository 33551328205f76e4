"""Sums over all examples, from which a block's eigenbases are found (and its eigenvalues, unless Kronecker).

kronecker   Σ_t g_t g_tᵀ and Σ_t a_t a_tᵀ   over the tokens of all examples that are not padding
dense       Σ_i v_i v_iᵀ                     v_i the gradient of example i
diagonal    Σ_i v_i²
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from simfluence.attribution.ekfac.blocks import Block
from simfluence.attribution.gradient_parts import GradientPart, Outer, Rows, Summed, dense, place

_ROUNDING = 100
"""Gradients below so many units of rounding of the terms that they are sums of count as zero. (An example is
a bias that adds the same to all scores of a choice.)"""


def vanishes(squares: Tensor, size: Tensor | float) -> bool:
    """Whether gradients are nothing but rounding errors.

    squares : the sum of the squared gradients. size : the same, had the terms that each gradient is a sum of
    been added up by their absolute values.
    """
    return float(squares) <= (_ROUNDING * torch.finfo(squares.dtype).eps) ** 2 * float(size)


class _Kronecker:
    """Sums over tokens of g gᵀ and a aᵀ."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.out: Tensor | None = None
        self.inputs: Tensor | None = None
        self.tokens = 0.0
        self.size: Tensor | float = 0.0

    def add(self, parts: Sequence[GradientPart], squares: Squares) -> None:
        outer = self.block.outer(parts)
        rows, columns = self.block.shape
        if self.out is None or self.inputs is None:
            self.out, self.inputs = outer.left.new_zeros(rows, rows), outer.right.new_zeros(columns, columns)
        ones = self.block.ones
        squares.add(self.out, outer.left, outer.mask, ones == "left")
        squares.add(self.inputs, outer.right, outer.mask, ones == "right")
        self.tokens += float(outer.mask.sum()) if outer.mask is not None else outer.shape.numel()
        lengths = outer.left.norm(dim=-1) * (outer.right.norm(dim=-1) + bool(ones))
        self.size = self.size + lengths.sum(1).square().sum()


class _Dense:
    """Sums over examples of v vᵀ, of gradients v."""

    def __init__(self, block: Block) -> None:
        self.total: Tensor | None = None
        self.size: Tensor | float = 0.0

    def add(self, parts: Sequence[GradientPart], squares: Squares) -> None:
        flat = dense(parts).flatten(1)
        self.total = _plus(self.total, flat.T @ flat)
        for part in parts:
            terms = part.values.abs() if isinstance(part, Summed) else part.dense().abs()[:, None]
            self.size = self.size + terms.sum(1).square().sum()


class _Diagonal:
    """Sums over examples of v², of gradients v."""

    def __init__(self, block: Block) -> None:
        self.shape = block.shape
        self.total: Tensor | None = None

    def add(self, parts: Sequence[GradientPart], squares: Squares) -> None:
        part = parts[0]
        if len(parts) > 1 or not isinstance(part, Rows):
            self.total = _plus(self.total, dense(parts).square().sum(0).reshape(self.shape))
            return
        if self.total is None:
            self.total = part.values.new_zeros(self.shape)
        # rows that an example looked up several times are added up before they are squared
        keys = part.ids + part.rows * torch.arange(len(part.ids), device=part.ids.device)[:, None]
        unique, where = keys.flatten().unique(return_inverse=True)
        values = part.values.flatten(0, 1)
        sums = values.new_zeros(len(unique), values.shape[1]).index_add_(0, where, values)
        self.total.index_add_(0, unique % part.rows, sums.square())


MOMENTS: dict[str, Callable[[Block], Any]] = {
    "kronecker": _Kronecker,
    "dense": _Dense,
    "diagonal": _Diagonal,
}


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part.clone() if total is None else total.add_(part)


class Squares:
    """Σ x xᵀ over the tokens of a batch, on and above the diagonal; computed once for a shared input."""

    def __init__(self, batch: Iterable[Sequence[GradientPart]]) -> None:
        outers = [part for parts in batch for part in parts if isinstance(part, Outer)]
        self._uses = Counter(place(values) for o in outers for values in (o.left, o.right))
        self._known: dict[Any, Tensor] = {}

    def add(self, total: Tensor, values: Tensor, mask: Tensor | None, ones: bool) -> None:
        """total += Σ x xᵀ over tokens that are no padding. ones : whether x is extended by a last 1."""
        lies = place(values)
        if self._uses[lies] == 1:
            _add_square(total, values, mask, ones)
            return
        if (lies, ones) not in self._known:
            self._known[lies, ones] = torch.zeros_like(total)
            _add_square(self._known[lies, ones], values, mask, ones)
        total += self._known[lies, ones]


def _add_square(total: Tensor, values: Tensor, mask: Tensor | None, ones: bool, width: int = 192) -> None:
    """total += xᵀx [feature, feature], in blocks of its upper half."""
    flat = values.flatten(0, 1)
    if mask is not None and not bool(mask.all()):
        flat = flat[mask.flatten()]
    features = flat.shape[1]
    for start in range(0, features, width):
        rows = slice(start, min(start + width, features))
        total[rows, start:features].addmm_(flat[:, rows].T, flat[:, start:])
    if ones:
        total[:-1, -1] += flat.sum(0)
        total[-1, -1] += len(flat)
