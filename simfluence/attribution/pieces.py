"""Gradients of single examples by parameter, in the form that a layer gives them.

A parameter's gradient is a sum over tokens t (all positions of all rows of an example):

    Outer    G_i = Σ_t g_t a_tᵀ            linear maps: inputs a [in], gradients of outputs g [out]
    Rows     G_i[r] = Σ_{t: r_t = r} g_t   embeddings: the row r_t that was looked up
    Summed   G_i = Σ_t v_t                 everything else: biases, norms, scales

Tokens that an example does not have are zeros, and False in ``mask`` [example, token] (None: there is no
token that the parts belong to).
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


Piece: TypeAlias = Outer | Rows | Summed


def dense(pieces: Sequence[Piece]) -> Tensor:
    """The gradient [example, …] of which these are parts (a weight may be used in several places)."""
    total = pieces[0].dense()
    for piece in pieces[1:]:
        total = total + piece.dense()
    return total


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The same with pieces of a kind put behind one another along tokens, so that there are few."""
    found: list[Piece] = []
    for kind in (Outer, Rows, Summed):
        if same := [piece for piece in pieces if isinstance(piece, kind)]:
            found.append(same[0] if len(same) == 1 else _joined([_masked(p) for p in same], 1))
    return found


def stacked(batches: Sequence[Sequence[Piece]]) -> list[Piece]:
    """Pieces of one parameter from several batches as those of one; all batches have the same kinds."""
    if len(batches) == 1:
        return list(batches[0])
    found: list[Piece] = []
    for same in zip(*batches, strict=True):
        if isinstance(same[0], Summed):  # their tokens are not looked at any more
            found.append(Summed(torch.cat([piece.dense() for piece in same])[:, None]))
            continue
        longest = max(piece.shape[1] for piece in same)
        found.append(_joined([_lengthened(replace(piece, mask=None), longest) for piece in same], 0))
    return found


def _joined(pieces: Sequence[Any], dimension: int) -> Any:
    first = pieces[0]
    names = ("left", "right") if isinstance(first, Outer) else ("values",)
    names = (*names, "ids") if isinstance(first, Rows) else names
    parts = {name: torch.cat([getattr(piece, name) for piece in pieces], dimension) for name in names}
    mask = None if first.mask is None else torch.cat([piece.mask for piece in pieces], dimension)
    return replace(first, **parts, mask=mask)


def _masked(piece: Piece) -> Piece:
    if piece.mask is not None:
        return piece
    values = piece.left if isinstance(piece, Outer) else piece.values
    return replace(piece, mask=torch.ones(piece.shape, dtype=torch.bool, device=values.device))


def _lengthened(piece: Piece, tokens: int) -> Piece:
    missing = tokens - piece.shape[1]
    return piece.each(lambda values: pad(values, (0, 0) * (values.ndim - 2) + (0, missing)))


def place(values: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: the same for what several layers were given."""
    return values.data_ptr(), values.shape, values.stride()
