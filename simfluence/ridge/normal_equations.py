"""Normal equations of many regressions whose designs share one sparse matrix.

Everything a direct solver needs is k² weighted sums of outer products of the same sparse rows,

    (Σ_r s_jz(r) s_lz(r) u_r u_rᵀ)  for each pair of blocks j, l,

which are one sparse matrix (all pairs of co-occurring examples) times one dense one [row, test].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.ridge.problem import Array, RidgeProblem


@dataclass(frozen=True)
class NormalEquations:
    """G_z = X_zᵀ X_z [test, p, p] ([1, p, p] if shared) and m_z = X_zᵀ y_z [test, p]."""

    gram: Array
    moment: Array

    def __sub__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(self.gram - other.gram, self.moment - other.moment)


class OuterProducts:
    """Sums of u_r u_rᵀ under any row weights, prepared once for a count matrix.

    Parameters
    ----------
    counts : sparse [row, n].
    """

    def __init__(self, counts: sparse.csr_array) -> None:
        counts = counts.copy()
        counts.sum_duplicates()  # sorts each row too
        self.counts = counts
        self.n = counts.shape[1]
        # one fused multiply-add of a pair costs about twenty of a dense product
        self._dense = 10 * float(np.square(np.diff(counts.indptr), dtype=np.float64).mean()) > self.n**2
        if self._dense:
            self._rows = counts.toarray()
            return
        row, left, right = _pairs(counts)
        values = counts.data[left] * counts.data[right]
        i, j = counts.indices[left], counts.indices[right]
        # upper triangle only, numbered as the places that occur; the last number is for the others
        key, place = np.unique(i.astype(np.int64) * self.n + j, return_inverse=True)
        self._lookup = np.full((self.n, self.n), len(key))
        self._lookup[key // self.n, key % self.n] = np.arange(len(key))
        self._lookup[key % self.n, key // self.n] = np.arange(len(key))
        self._pairs = sparse.coo_array((values, (place, row)), shape=(len(key) + 1, counts.shape[0])).tocsr()

    def weighted(self, weights: Array) -> Array:
        """Σ_r w_r u_r u_rᵀ for each column of weights [row, test] → [test, n, n]."""
        full = np.empty((weights.shape[1], self.n, self.n))
        self.weighted_into(full, weights)
        return full

    def weighted_into(self, blocks: Array, weights: Array) -> None:
        """The same, written to [test, n, n]."""
        if self._dense:
            for z, weight in enumerate(weights.T):
                blocks[z] = self._rows.T @ (weight[:, None] * self._rows)
            return
        sums = np.ascontiguousarray((self._pairs @ weights).T)
        square = np.empty((self.n, self.n))
        for block, values in zip(blocks, sums, strict=True):
            np.take(values, self._lookup, out=square, mode="clip")  # checking bounds takes a copy
            block[:] = square


def normal_equations(
    outer: OuterProducts, scales: Sequence[Array], target: Array, gram: Array | None = None
) -> NormalEquations:
    """Gram matrices and moments of the designs [diag(s_1) U, …, diag(s_k) U].

    Parameters
    ----------
    outer : of the counts U [row, n].
    scales : k arrays [row, test], or [row, 1] if shared; 0 leaves a row out.
    target : y [row, test], finite everywhere.
    gram : where to write [test, p, p], if at hand: fresh memory costs more than the arithmetic.
    """
    n, k, tests = outer.n, len(scales), target.shape[1]
    if gram is None:
        gram = np.empty((scales[0].shape[1], k * n, k * n))
    moment = np.empty((tests, k * n))
    for a in range(k):
        rows = slice(a * n, (a + 1) * n)
        moment[:, rows] = (outer.counts.T @ (scales[a] * target)).T
        for b in range(a, k):
            columns = slice(b * n, (b + 1) * n)
            outer.weighted_into(gram[:, rows, columns], scales[a] * scales[b])
            if a != b:
                gram[:, columns, rows] = gram[:, rows, columns]  # symmetric: Uᵀ diag(w) U
    return NormalEquations(gram, moment)


def normal_equations_of(
    problem: RidgeProblem, outer: OuterProducts | None = None, gram: Array | None = None
) -> NormalEquations:
    """Those of a problem; ``outer`` of its counts, if at hand."""
    return normal_equations(outer or OuterProducts(problem.counts), problem.scales, problem.target, gram)


def _pairs(counts: sparse.csr_array) -> tuple[npt.NDArray[np.int64], ...]:
    """All pairs of stored entries of the same row, each with j ≥ i: (row, place of i, place of j)."""
    sizes = np.diff(counts.indptr)
    rows, lefts, rights = [], [], []
    for size in np.unique(sizes):  # rows of one size at a time, so that no loop runs over rows
        of_size = np.flatnonzero(sizes == size)
        a, b = np.triu_indices(size)
        start = counts.indptr[of_size][:, None]
        rows.append(np.repeat(of_size, len(a)))
        lefts.append((start + a).ravel())
        rights.append((start + b).ravel())
    return tuple(np.concatenate(parts).astype(np.int64) for parts in (rows, lefts, rights))
