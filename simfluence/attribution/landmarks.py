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

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from simfluence.attribution.sketch import fold
from simfluence.attribution.tracing import Traced

_REST = 2**31
"""The second sketch is drawn from the seed and this number, which is no parameter's."""
_BLOCK = 2**11
"""Columns of the landmarks' sketches that are copied at once."""
_TOGETHER = 16
"""Sketches that are shortened at once."""


def drawn(examples: int, count: int, seed: int) -> list[int]:
    """So many training examples at random, ascending: the landmarks, or those that sizes are taken from."""
    random = np.random.default_rng(np.random.SeedSequence([seed, _REST + 1]))
    return sorted(random.permutation(examples)[:count].tolist())


class Basis(NamedTuple):
    """An orthonormal basis of the landmarks' sketches, which are ``own @ rows``.

    rows : Qᵀ [landmark, K]. own : [landmark, landmark].
    """

    rows: Tensor
    own: Tensor


def basis_of(sketches: Tensor) -> Basis:
    """The basis of the landmarks' sketches [landmark, K], in whose memory its rows are written.

    By a Cholesky decomposition of their inner products, which takes no more memory; shifted, since sketches
    may depend on each other (Fukaya et al. 2020), and twice, since the first basis is not quite orthonormal.
    """
    one = torch.eye(len(sketches), dtype=torch.float64, device=sketches.device)
    own = one
    for _ in range(2):
        inner = torch.zeros_like(one)
        for block in sketches.split(_BLOCK, dim=1):
            wide = block.double()
            inner += wide @ wide.T
        lower = torch.linalg.cholesky(inner + (1e-13 * inner.trace() + 1e-300) * one)
        change = torch.linalg.solve_triangular(lower, one, upper=False).to(sketches)
        for block in sketches.split(_BLOCK, dim=1):
            block.copy_(change @ block)
        own = own @ lower
    return Basis(sketches, own.to(sketches))


@dataclass(frozen=True)
class Projection:
    """Gradients of a batch → [example, k].

    sketch : φ, gradients of a batch → [example, K]. basis : of c landmarks; None: φ itself is the projection,
    and K = k. k, seed : as in this module.
    """

    sketch: Callable[[Traced], Tensor]
    basis: Basis | None
    k: int
    seed: int

    def __call__(self, traced: Traced) -> Tensor:
        """[example, k] of a batch whose gradients were traced."""
        return self.shortened(self.sketch(traced))

    def of(self, batches: Iterable[Traced]) -> Tensor:
        """[example, k] of several batches, whose sketches are shortened some dozens at a time."""
        found, waiting = [], []
        for wide in map(self.sketch, batches):
            waiting.append(wide)
            if sum(map(len, waiting)) >= _TOGETHER:
                found.append(self.shortened(torch.cat(waiting)))
                waiting.clear()
        return torch.cat([*found, *(self.shortened(wide) for wide in waiting)])

    def of_landmarks(self) -> Tensor:
        """[landmark, k] of the landmarks themselves, of which the basis leaves nothing."""
        assert self.basis is not None
        return pad(self.basis.own, (0, self.k - len(self.basis.own)))

    def shortened(self, wide: Tensor) -> Tensor:
        """[example, k] of wide sketches [example, K]."""
        if self.basis is None:
            return wide
        rows = self.basis.rows.to(wide)
        first = wide @ rows.T
        return torch.cat([first, self._rest(wide - first @ rows)], 1)

    def _rest(self, rest: Tensor) -> Tensor:
        """R of [example, K]."""
        random = np.random.default_rng(np.random.SeedSequence([self.seed, _REST]))
        order = torch.from_numpy(random.permutation(rest.shape[1])).to(rest.device)
        signs: Any = torch.from_numpy(random.integers(0, 2, rest.shape[1]) * 2.0 - 1).to(rest)
        assert self.basis is not None
        total = rest.new_zeros(len(rest), self.k - len(self.basis.rows))
        fold(total, rest[:, order] * signs, 0)
        return total
