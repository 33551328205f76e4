"""Gradients in the eigenbases of their block, Q_Sᵀ G_i Q_A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from simfluence.attribution.buffers import fresh
from simfluence.attribution.ekfac.blocks import Block
from simfluence.attribution.ekfac.factors import Factors
from simfluence.attribution.gradient_parts import GradientPart, Outer, merged, place
from simfluence.attribution.tracing import Traced


class Rotation:
    """Gradients in the eigenbases, Q_Sᵀ G_i Q_A; of one batch, since inputs that layers share are rotated
    once."""

    def __init__(self, factors: Mapping[str, Factors]) -> None:
        self.factors = factors
        self._known: dict[Any, tuple[Tensor, Tensor]] = {}

    def __call__(self, block: Block, traced: Traced) -> Outer:
        outer = block.outer(merged(traced.parts[block.parameters[0]]))
        factor = self.factors[block.name]
        assert factor.out_basis is not None
        assert factor.in_basis is not None
        left = self._rotated(outer.left, factor.out_basis, block.ones == "left")
        return Outer(left, self._rotated(outer.right, factor.in_basis, block.ones == "right"), outer.mask)

    def _rotated(self, values: Tensor, basis: Tensor, ones: bool) -> Tensor:
        """[example, token, feature] times the basis; with ``ones``, a last feature of 1 is understood."""
        key = place(values), id(basis)
        if key not in self._known:  # the values too: while they live, their place is not reused
            flat = values.flatten(0, 1)
            rotated = fresh(flat, len(flat), basis.shape[1])
            if ones:
                torch.addmm(basis[-1], flat, basis[:-1], out=rotated)
            else:
                torch.mm(flat, basis, out=rotated)
            self._known[key] = values, rotated.unflatten(0, values.shape[:2])
        return self._known[key][1]


def in_eigenbases(traced: Traced, blocks: Sequence[Block], factors: Mapping[str, Factors]) -> Traced:
    """The gradients by block; those of Kronecker blocks are in their eigenbases."""
    rotate = Rotation(factors)
    return Traced(
        traced.losses,
        {
            block.name: [rotate(block, traced)] if block.treatment == "kronecker" else block.parts(traced)
            for block in blocks
            if block.parameters[0] in traced.parts
        },
    )


_CACHED = 150_000
"""Numbers of a temporary matrix that stays in a processor's cache while it is made and squared."""


def add_squares(total: Tensor, parts: Sequence[GradientPart]) -> None:
    """Λ += Σ_i (Σ_t g_t a_tᵀ)², entry by entry."""
    (rotated,) = parts
    assert isinstance(rotated, Outer)
    if rotated.shape[1] == 1:
        total.addmm_(rotated.left[:, 0].square().T, rotated.right[:, 0].square())
        return
    height = max(96, _CACHED // total.shape[1])
    matrix = torch.empty_like(total[:height])
    for start in range(0, len(total), height):
        rows = total[start : start + height]
        for left, right in zip(rotated.left[..., start : start + height], rotated.right, strict=True):
            rows.addcmul_(*[torch.mm(left.T, right, out=matrix[: len(rows)])] * 2)
