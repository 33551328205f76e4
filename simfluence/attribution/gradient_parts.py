"""Gradient parts: what each use of a parameter contributes to the gradients of single examples.

The gradient of a parameter is a sum over tokens t (all positions of all rows of an example). A part keeps the
terms of this sum in one of three forms, of which the layer decides:

    Outer    G_i = Σ_t g_t a_tᵀ            linear maps: inputs a [in], gradients of outputs g [out]
    Rows     G_i[r] = Σ_{t: r_t = r} g_t   embeddings: the row r_t that was looked up
    Summed   G_i = Σ_t v_t                 everything else: biases, norms, scales

Tokens that an example does not have are zeros, and False in ``mask`` [example, token] (None: the part does
not belong to tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Outer:
    """left [example, token, out], right [example, token, in] of matrices [out, in]."""

    left: Tensor
    right: Tensor
    mask: Tensor | None = None

    def dense(self) -> Tensor:
        """[example, out, in]."""
        return self.left.transpose(1, 2) @ self.right

    def each(self, change: Callable[[Tensor], Tensor]) -> Outer:
        return Outer(change(self.left), change(self.right), None if self.mask is None else change(self.mask))

    @property
    def shape(self) -> torch.Size:
        """[example, token]."""
        return self.left.shape[:2]

    @property
    def numbers(self) -> int:
        """Of one example's gradient."""
        return self.left.shape[2] * self.right.shape[2]


@dataclass(frozen=True)
class Rows:
    """ids [example, token], values [example, token, in] of matrices [rows, in]."""

    ids: Tensor
    values: Tensor
    rows: int
    mask: Tensor | None = None

    def dense(self) -> Tensor:
        """[example, rows, in]."""
        examples, _, width = self.values.shape
        total = self.values.new_zeros(examples, self.rows, width)
        return total.scatter_add_(1, self.ids[..., None].expand_as(self.values), self.values)

    def each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        mask = None if self.mask is None else change(self.mask)
        return Rows(change(self.ids), change(self.values), self.rows, mask)

    @property
    def shape(self) -> torch.Size:
        """[example, token]."""
        return self.ids.shape

    @property
    def numbers(self) -> int:
        """Of one example's gradient."""
        return self.rows * self.values.shape[2]


@dataclass(frozen=True)
class Summed:
    """values [example, token, …]."""

    values: Tensor
    mask: Tensor | None = None

    def dense(self) -> Tensor:
        """[example, …]."""
        return self.values.sum(1) if self.values.shape[1] > 1 else self.values[:, 0]

    def each(self, change: Callable[[Tensor], Tensor]) -> Summed:
        return Summed(change(self.values), None if self.mask is None else change(self.mask))

    @property
    def shape(self) -> torch.Size:
        """[example, token]."""
        return self.values.shape[:2]

    @property
    def numbers(self) -> int:
        """Of one example's gradient."""
        return self.values[0, 0].numel()


GradientPart: TypeAlias = Outer | Rows | Summed


def dense(parts: Sequence[GradientPart]) -> Tensor:
    """The whole gradient [example, …], the sum of its parts (a weight may be used in several places)."""
    total = parts[0].dense()
    for part in parts[1:]:
        total = total + part.dense()
    return total


def scaled(part: GradientPart, factor: float) -> GradientPart:
    """The part of the gradient that is ``factor`` times as large."""
    if isinstance(part, Outer):
        return replace(part, left=factor * part.left)
    return replace(part, values=factor * part.values)


def merged(parts: Sequence[GradientPart]) -> list[GradientPart]:
    """At most one part of each form, with the same sum: parts of one form are joined along their tokens."""
    found: list[GradientPart] = []
    for kind in (Outer, Rows, Summed):
        if same := [part for part in parts if isinstance(part, kind)]:
            found.append(same[0] if len(same) == 1 else _joined([_masked(p) for p in same], 1))
    return found


def stacked(batches: Sequence[Sequence[GradientPart]]) -> list[GradientPart]:
    """One parameter's parts in several batches, all of the same forms, joined along examples."""
    if len(batches) == 1:
        return list(batches[0])
    found: list[GradientPart] = []
    for same in zip(*batches, strict=True):
        if isinstance(same[0], Summed):  # single tokens are not needed any more
            found.append(Summed(torch.cat([part.dense() for part in same])[:, None]))
            continue
        longest = max(part.shape[1] for part in same)
        found.append(_joined([_lengthened(replace(part, mask=None), longest) for part in same], 0))
    return found


def _joined(parts: Sequence[Any], dimension: int) -> Any:
    first = parts[0]
    names = ("left", "right") if isinstance(first, Outer) else ("values",)
    names = (*names, "ids") if isinstance(first, Rows) else names
    joined = {name: torch.cat([getattr(part, name) for part in parts], dimension) for name in names}
    mask = None if first.mask is None else torch.cat([part.mask for part in parts], dimension)
    return replace(first, **joined, mask=mask)


def _masked(part: GradientPart) -> GradientPart:
    if part.mask is not None:
        return part
    values = part.left if isinstance(part, Outer) else part.values
    return replace(part, mask=torch.ones(part.shape, dtype=torch.bool, device=values.device))


def _lengthened(part: GradientPart, tokens: int) -> GradientPart:
    missing = tokens - part.shape[1]
    return part.each(lambda values: pad(values, (0, 0) * (values.ndim - 2) + (0, missing)))


def place(values: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory. It is the same for an input that several layers share."""
    return values.data_ptr(), values.shape, values.stride()
