"""Seeded random projections of gradients, computed block by block.

    φ = g R,   R [parameter, dimension], entries ±1/√dimension (Rademacher) or N(0, 1/dimension)

so that E⟨φ, φ'⟩ = ⟨g, g'⟩. Each block of rows of R is drawn from a seed of its own and need not stay in
memory; the projection of a gradient does not depend on the batch that it is in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

ROWS = 4096
"""Rows (parameters) in a block of R. Another number would give other projections for the same seed."""
_KEPT = 2**26
"""Entries of R that are kept from batch to batch (256 MB), beyond which blocks are drawn again."""


@dataclass
class Projection:
    """[…, size] → […, dimension].

    size : parameters. dimension : None leaves gradients as they are. seed : one or more numbers.
    """

    size: int
    dimension: int | None
    seed: tuple[int, ...]
    kind: Literal["rademacher", "gaussian"] = "rademacher"
    _blocks: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in ("rademacher", "gaussian"):
            raise ValueError(f"a projection is 'rademacher' or 'gaussian', got {self.kind!r}")
        if self.dimension is not None and self.dimension < 1:
            raise ValueError(f"dimension must be at least 1 (or None), got {self.dimension}")

    def __call__(self, gradients: Tensor) -> Tensor:
        """[example, size] → [example, dimension], in the gradients' precision."""
        if gradients.shape[-1] != self.size:
            raise ValueError(f"expected gradients [example, {self.size}], got {list(gradients.shape)}")
        if self.dimension is None:
            return gradients
        total = gradients.new_zeros(len(gradients), self.dimension)
        for number, part in enumerate(gradients.split(ROWS, 1)):
            total += part @ self._block(number).to(part)
        return total / self.dimension**0.5

    def _block(self, number: int) -> Tensor:
        """Rows ROWS·number onwards of √dimension R, float32."""
        assert self.dimension is not None
        if number in self._blocks:
            return self._blocks[number]
        seed = np.random.SeedSequence([*self.seed, number])
        shape = (min(ROWS, self.size - ROWS * number), self.dimension)
        if self.kind == "gaussian":
            drawn = int(seed.generate_state(1, np.uint64)[0]) % 2**63
            block = torch.randn(shape, generator=torch.Generator().manual_seed(drawn))
        else:
            entries = shape[0] * shape[1]
            bits = np.frombuffer(np.random.default_rng(seed).bytes(-(-entries // 8)), np.uint8)
            ones = torch.from_numpy(np.unpackbits(bits, count=entries))
            block = ones.reshape(shape).float().mul_(2).sub_(1)
        if self.size * self.dimension <= _KEPT:
            self._blocks[number] = block
        return block
