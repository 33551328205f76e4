"""Gradients of single examples by layer, in the form that the layer gives them, and their inner products.

A layer's gradient is a sum over tokens t (all positions of all rows of an example):

    Outer    G_i = Σ_t g_t a_tᵀ            linear maps: inputs a [in], gradients of outputs g [out]
    Rows     G_i[r] = Σ_{t: r_t = r} g_t   embeddings: the row r_t that was looked up
    Summed   G_i = Σ_t v_t                 everything else: biases, norms, scales

so that ⟨G_i, G_z⟩ = Σ_{t,s} (a_t·a_s)(g_t·g_s) of linear maps needs no G at all.
Tokens that an example does not have are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """left [example, token, out], right [example, token, in] of matrices [out, in]."""

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """[example, out, in]."""
        return self.left.transpose(1, 2) @ self.right

    def tokens(self) -> int:
        return self.left.shape[1]


@dataclass(frozen=True)
class Rows:
    """ids [example, token], values [example, token, in] of matrices [rows, in]."""

    ids: Tensor
    values: Tensor
    rows: int

    def dense(self) -> Tensor:
        """[example, rows, in]."""
        examples, _, width = self.values.shape
        total = self.values.new_zeros(examples, self.rows, width)
        return total.scatter_add_(1, self.ids[..., None].expand_as(self.values), self.values)

    def tokens(self) -> int:
        return self.ids.shape[1]


@dataclass(frozen=True)
class Summed:
    """values [example, token, …]."""

    values: Tensor

    def dense(self) -> Tensor:
        """[example, …]."""
        return self.values.sum(1)

    def tokens(self) -> int:
        return self.values.shape[1]


Piece: TypeAlias = Outer | Rows | Summed


def dense(pieces: Sequence[Piece]) -> Tensor:
    """The gradient [example, …] of which these are parts (a weight may be used in several places)."""
    total = pieces[0].dense()
    for piece in pieces[1:]:
        total = total + piece.dense()
    return total


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The same with pieces of a kind put behind one another, so that there are few."""
    found: list[Piece] = []
    if outer := [piece for piece in pieces if isinstance(piece, Outer)]:
        left, right = torch.cat([p.left for p in outer], 1), torch.cat([p.right for p in outer], 1)
        found.append(outer[0] if len(outer) == 1 else Outer(left, right))
    if rows := [piece for piece in pieces if isinstance(piece, Rows)]:
        ids, values = torch.cat([p.ids for p in rows], 1), torch.cat([p.values for p in rows], 1)
        found.append(rows[0] if len(rows) == 1 else Rows(ids, values, rows[0].rows))
    if summed := [piece for piece in pieces if isinstance(piece, Summed)]:
        found.append(Summed(torch.cat([p.values for p in summed], 1)))
    return found
