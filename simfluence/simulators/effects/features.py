"""Feature blocks: what of a curriculum acts at each step, as columns of one shared regression.

A block rounds a curriculum into features [step, column]; their coefficients are effects on each test
example, penalised alike up to the block's ``weight`` (the prior variance of its effects relative to
those of examples). The blocks:

    examples   m̂_{t,i}                    every example's own effect (always there)
    groups     Σ_{i∈g} m̂_{t,i}            an effect shared by the examples of a group
    seen       m̂_{t,i} of repeated uses   what an example teaches less (or more) when it, or its like,
                                          was seen before: u_{t,i} (1 − exp(−Σ_j R_ij s_{t,j})), where s
                                          counts earlier uses and R is a redundancy matrix (default: I)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, count_matrix
from simfluence.simulators.effects.momentum import momentum_average

Array = npt.NDArray[np.float64]

BLOCKS = ("examples", "groups", "seen")


@dataclass(frozen=True)
class Features:
    """How curricula become features; fixed by the fit, applied to any curriculum.

    Parameters
    ----------
    n_train : the size of the training table.
    blocks : which of ``BLOCKS``, in this order of columns; "examples" comes first.
    beta, corrected : the optimizer's momentum (momentum.py).
    batch_size : the usual one.
    rates : float [step], relative learning rates; the last goes on.
    groups : float [train, group], 1 for membership; only for the block "groups".
    redundancy : float [train, train] R ≥ 0; only for "seen"; None is the identity.
    """

    n_train: int
    blocks: Sequence[str]
    beta: float
    corrected: bool
    batch_size: float
    rates: Array
    groups: Array | None = None
    redundancy: Array | None = None

    @property
    def widths(self) -> list[int]:
        """The number of columns of each block."""
        groups = 0 if self.groups is None else self.groups.shape[1]
        return [groups if block == "groups" else self.n_train for block in self.blocks]

    def examples(self, curriculum: Curriculum) -> Array:
        """m̂ times the relative learning rate, float [step, train]."""
        return self._act(count_matrix([curriculum], self.batch_size).toarray())

    def __call__(self, curriculum: Curriculum, weights: Array | None = None) -> Array:
        """float [step, column]; weights [use] are of ``curriculum.examples``, 1 each if not given."""
        counts = count_matrix([curriculum], self.batch_size, weights).toarray()
        remembered = self._act(counts)
        columns = []
        for block in self.blocks:
            if block == "examples":
                columns.append(remembered)
            elif block == "groups":
                assert self.groups is not None
                columns.append(remembered @ self.groups)
            else:
                columns.append(self._act(counts * self._seen(counts)))
        return np.concatenate(columns, axis=1)

    def _act(self, counts: Array) -> Array:
        step = np.minimum(np.arange(len(counts)), len(self.rates) - 1)
        return momentum_average(counts, self.beta, self.corrected) * self.rates[step, None]

    def _seen(self, counts: Array) -> Array:
        """1 − exp(−R s_t): how much of each example was known before step t, in 0 .. 1."""
        earlier = np.cumsum(counts, axis=0) - counts
        if self.redundancy is not None:
            earlier = earlier @ self.redundancy.T
        return 1.0 - np.exp(-earlier)


def membership(groups: Sequence[str]) -> Array | None:
    """float [train, group] of named groups; None where they tell nothing (one group, or all alone)."""
    names, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if not 1 < len(names) < len(number):
        return None
    matrix = np.zeros((len(number), len(names)))
    matrix[np.arange(len(number)), number] = 1.0
    return matrix


def progress_basis(steps: npt.ArrayLike, total: int, decay: float, size: int = 6) -> Array:
    """How effects vary with training progress: φ_k(t) = √(decayᵏ (2k+1)) P_k(2τ − 1), normalised.

    P_k are Legendre polynomials, τ = (t − ½)/total clipped to 0 .. 1. An effect Σ_k φ_k(t) b_k with
    b_k ~ N(0, 1) then has variance 1 on average over training, and is the smoother the smaller
    ``decay`` (0: constant).

    Parameters
    ----------
    steps : int, counted from 1 (step t leads to L_t).

    Returns
    -------
    float [step, k]; columns of no variance are left out.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must lie in 0 ≤ decay < 1, got {decay}")
    size = 1 if decay == 0 else size
    variance = decay ** np.arange(size)
    position = np.clip((2 * np.asarray(steps, np.float64) - 1) / total - 1, -1.0, 1.0)
    legendre = np.polynomial.legendre.legvander(position, size - 1)
    return legendre * np.sqrt(variance / variance.sum() * (2 * np.arange(size) + 1))
