"""Wide sketches of gradients, shortened to k numbers by a basis of some training examples, the landmarks.

    ψ(G) = [Qᵀφ(G), R(φ(G) − QQᵀφ(G))]

φ is a sketch to K ≫ k numbers (:mod:`.sketch`). Q [K, c] is an orthonormal basis of the sketches of c
training examples drawn at random, and R a second sketch, of what the basis leaves, to k − c numbers. Inner
products of ψ are unbiased, as those of φ. R adds an error of its own, with a standard deviation of about
|rest of i| |rest of z| / √(k − c), which is small where the landmarks' gradients span much of the others'. If
all training examples are landmarks there is none, and the error of φ remains, √(K/k) times smaller than that
of a sketch to k numbers. (Nyström approximation, Williams & Seeger 2001, with the remainder sketched.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simfluence.attribution.sketch import Sketch, fold
from simfluence.attribution.tracing import Traced

_REST = 2**31
"""The second sketch is drawn from the seed and this number, which is no parameter's."""


def drawn(examples: int, count: int, seed: int) -> list[int]:
    """So many of the training examples at random, ascending: the landmarks, or those that sizes are taken from."""
    random = np.random.default_rng(np.random.SeedSequence([seed, _REST + 1]))
    return sorted(random.permutation(examples)[:count].tolist())


def basis_of(sketches: Tensor) -> Tensor:
    """Q [K, landmark] for the landmarks' sketches [landmark, K]."""
    basis: Tensor = torch.linalg.qr(sketches.T)[0]
    return basis.contiguous()


@dataclass(frozen=True)
class Projection:
    """Gradients of a batch → [example, k].

    sketch : φ. basis : Q [K, c]; None: φ itself is the projection, and K = k. k, seed : as in this module.
    """

    sketch: Sketch
    basis: Tensor | None
    k: int
    seed: int

    def __call__(self, traced: Traced) -> Tensor:
        """[example, k] of a batch whose gradients were traced."""
        return self.shortened(self.sketch(traced))

    def shortened(self, wide: Tensor) -> Tensor:
        """[example, k] of wide sketches [example, K]."""
        if self.basis is None:
            return wide
        basis = self.basis.to(wide)
        first = wide @ basis
        return torch.cat([first, self._rest(wide - first @ basis.T)], 1)

    def _rest(self, rest: Tensor) -> Tensor:
        """R of [example, K]."""
        random = np.random.default_rng(np.random.SeedSequence([self.seed, _REST]))
        order = torch.from_numpy(random.permutation(rest.shape[1])).to(rest.device)
        signs: Any = torch.from_numpy(random.integers(0, 2, rest.shape[1]) * 2.0 - 1).to(rest)
        assert self.basis is not None
        total = rest.new_zeros(len(rest), self.k - self.basis.shape[1])
        fold(total, rest[:, order] * signs, 0)
        return total
