"""Seeded random projections of single examples' gradients to k numbers, whose inner products estimate theirs.

    φ(G)[b] = Σ_p ±_p w_p G_p   over the numbers p of all parameters that fall into place b of k

The signs ±_p are random and the places are spread evenly, so that E⟨φ(G), φ(H)⟩ = Σ_p w_p² G_p H_p, with a
standard deviation of about ‖wG‖ ‖wH‖ / √k. This is a tensor sketch (Pham & Pagh 2013): entry (r, c) of a
weight has the sign s_r s'_c and the place (start + r · stride + c) mod k, its rows and columns in random
order, so that a layer's sketch comes of its factors G = Σ_t g_t a_tᵀ; either

    from the matrix, some rows at a time, which is folded into k numbers, or
    without it, as Σ_t of the circular convolution of the sketches of g_t and a_t, by Fourier transforms,

whichever is less work. Where scales w differ within a layer (Adam's metric) it takes the matrix. If k is at
least the number of parameters, every number has a place of its own and the inner products are exact.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from simfluence.attribution.gradient_parts import GradientPart, Outer, Rows, dense, merged
from simfluence.attribution.layers import wide_type
from simfluence.attribution.tracing import Traced

Scales = Mapping[str, Tensor | float]
"""w of each parameter by name: an array of its shape, or one number. Others are left out of the sketch."""

_ROWS = 128
"""Rows of a layer's matrix that are in memory at once."""
_FOURIER = 25
"""So many multiplications of a matrix product take the time of one number's part in a Fourier transform."""


@dataclass(frozen=True)
class _Layout:
    """Where the entries of a matrix [row, column] go.

    rows, columns : which come first, [row] and [column]. ranks : the place of each row among these, [row].
    row_signs, column_signs : ±1, in the new order. start, stride : see this module.
    scale : in the new order, columns filled up with zeros, [row, stride]; or one number.
    """

    rows: Tensor
    columns: Tensor
    ranks: Tensor
    row_signs: Tensor
    column_signs: Tensor
    start: int
    stride: int
    scale: Tensor | float


class Sketch:
    """Gradients of a batch → [example, k], in float32 at least.

    Parameters
    ----------
    parameters : by name, in their order; the sketch depends on their names' order and their shapes.
    k : numbers a gradient. seed : of signs and orders. scales : see :data:`Scales`.

    Attributes
    ----------
    fingerprint : of all signs and places, without the scales.

    Raises ValueError for k < 1.
    """

    def __init__(self, parameters: Mapping[str, Tensor], k: int, seed: int, scales: Scales) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        digest = hashlib.sha256(f"tensor sketch 1, {k} numbers, seed {seed}".encode())
        self._layouts: dict[str, _Layout] = {}
        start = 0
        for number, (name, parameter) in enumerate(parameters.items()):
            layout = _layout(parameter, k, (seed, number), start, scales.get(name, 0.0))
            digest.update(f"{name} {tuple(parameter.shape)} {layout.start} {layout.stride}".encode())
            for drawn in (layout.rows, layout.columns, layout.row_signs, layout.column_signs):
                digest.update(drawn.cpu().numpy().astype(np.int64).tobytes())
            if name in scales:
                self._layouts[name] = layout
            start += parameter.numel()
        self.fingerprint = digest.hexdigest()[:32]

    def __call__(self, traced: Traced) -> Tensor:
        """[example, k] of a batch whose gradients were traced."""
        losses = traced.losses
        total = torch.zeros(len(losses), self.k, dtype=wide_type(losses), device=losses.device)
        for name, layout in self._layouts.items():
            for part in merged(traced.parts.get(name, ())):
                _add(total, part, layout)
        return total


def _layout(parameter: Tensor, k: int, seed: Sequence[int], start: int, scale: Tensor | float) -> _Layout:
    rows, columns = (1, parameter.numel()) if parameter.ndim < 2 else (len(parameter), parameter[0].numel())
    random, device = np.random.default_rng(np.random.SeedSequence(seed)), parameter.device
    row_order, column_order = (torch.from_numpy(random.permutation(n)).to(device) for n in (rows, columns))
    row_signs, column_signs = (
        torch.from_numpy(random.integers(0, 2, n) * 2.0 - 1).to(device, wide_type(parameter))
        for n in (rows, columns)
    )
    stride = columns
    if rows * columns > k:  # entries of one column, which tend to be large together, fall into many places
        while math.gcd(stride, k) > 1:
            stride += 1
    if isinstance(scale, Tensor):
        scale = scale.reshape(rows, columns)[row_order][:, column_order]
        scale = pad(scale, (0, stride - columns))
    ranks = row_order.argsort()
    return _Layout(row_order, column_order, ranks, row_signs, column_signs, start % k, stride, scale)


def _add(total: Tensor, part: GradientPart, layout: _Layout) -> None:
    """Add the sketch of one part to the total [example, k]."""
    if isinstance(part, Rows):
        return _add_rows(total, part, layout)
    if isinstance(part, Outer):
        left = part.left.to(total)[..., layout.rows] * layout.row_signs.to(total)
        right = part.right.to(total)[..., layout.columns] * layout.column_signs.to(total)
        if not isinstance(layout.scale, Tensor) and _prefers_fourier(left, right, total.shape[1]):
            return _add_convolved(total, left, layout.scale * right, layout)
        right = pad(right, (0, layout.stride - right.shape[-1]))
        for start in range(0, left.shape[-1], _ROWS):
            block = left[..., start : start + _ROWS].transpose(1, 2) @ right
            _add_block(total, block, start, layout)
        return None
    matrix = dense([part]).reshape(len(total), len(layout.rows), -1).to(total)
    matrix = matrix[:, layout.rows][..., layout.columns] * layout.column_signs.to(total)
    matrix = pad(matrix * layout.row_signs.to(total)[:, None], (0, layout.stride - matrix.shape[-1]))
    return _add_block(total, matrix, 0, layout)


def _add_block(total: Tensor, block: Tensor, first: int, layout: _Layout) -> None:
    """Some rows [example, row, stride] of a matrix in its new order, from the row ``first`` on."""
    if isinstance(layout.scale, Tensor):
        block.mul_(layout.scale[first : first + block.shape[1]])
    elif layout.scale != 1:
        block.mul_(layout.scale)
    fold(total, block.flatten(1), layout.start + first * layout.stride)


def fold(total: Tensor, values: Tensor, start: int) -> None:
    """total[:, (start + j) mod k] += values[:, j]."""
    k = total.shape[1]
    head = k - start % k
    total[:, k - head : k - head + values.shape[1]] += values[:, :head]
    rest = values[:, head:]
    whole = rest.shape[1] // k * k
    if whole:
        total += rest[:, :whole].unflatten(1, (-1, k)).sum(1)
    total[:, : rest.shape[1] - whole] += rest[:, whole:]


def _add_rows(total: Tensor, part: Rows, layout: _Layout) -> None:
    """The rows of an embedding, each where it was looked up."""
    ranks = layout.ranks[part.ids]
    values = part.values.to(total)[..., layout.columns] * layout.column_signs.to(total)
    values = values * layout.row_signs.to(total)[ranks][..., None]
    width = values.shape[-1]
    values = values * (layout.scale[ranks, :width] if isinstance(layout.scale, Tensor) else layout.scale)
    places = layout.start + ranks[..., None] * layout.stride + torch.arange(width, device=total.device)
    total.scatter_add_(1, (places % total.shape[1]).flatten(1), values.flatten(1))


def _prefers_fourier(left: Tensor, right: Tensor, k: int) -> bool:
    """Whether two Fourier transforms a token are less work than the matrix."""
    return _FOURIER * k * math.log2(k + 1) < left.shape[-1] * right.shape[-1]


def _add_convolved(total: Tensor, left: Tensor, right: Tensor, layout: _Layout) -> None:
    """Σ_t of the circular convolutions of the sketches of both factors, example by example."""
    k, device = total.shape[1], total.device
    rows = (layout.start + torch.arange(left.shape[-1], device=device) * layout.stride) % k
    columns = torch.arange(right.shape[-1], device=device) % k
    for example in range(len(total)):
        spectra = [
            torch.fft.rfft(values.new_zeros(len(values), k).index_add_(1, places, values))
            for values, places in ((left[example], rows), (right[example], columns))
        ]
        total[example] += torch.fft.irfft((spectra[0] * spectra[1]).sum(0), n=k)
