"""Ridge regression of many responses whose designs share one sparse matrix.

For each test example z the rows r are weighted copies of the counts u_r:

    design_z = [diag(s_1z) U, …, diag(s_kz) U],      s_jz : scale of block j, [row]

so that everything a fit needs is k² weighted sums of outer products of the same sparse rows:

    (Σ_r s_jz(r) s_lz(r) u_r u_rᵀ)  for each pair of blocks j, l,

which are one sparse matrix (all pairs of co-occurring examples) times one dense one [row, test].

Shapes: blocks k, examples n, columns p = k n; all float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NormalEquations:
    """G_z = X_zᵀ X_z [test, p, p] and m_z = X_zᵀ y_z [test, p]."""

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
        row, left, right = _pairs(counts)
        values = counts.data[left] * counts.data[right]
        i, j = counts.indices[left], counts.indices[right]
        # upper triangle only, numbered as the places that occur
        key, place = np.unique(i.astype(np.int64) * self.n + j, return_inverse=True)
        self._i, self._j = key // self.n, key % self.n
        self._pairs = sparse.coo_array((values, (place, row)), shape=(len(key), counts.shape[0])).tocsr()

    def weighted(self, weights: Array) -> Array:
        """Σ_r w_r u_r u_rᵀ for each column of weights [row, test] → [test, n, n]."""
        sums = (self._pairs @ weights).T
        full = np.zeros((weights.shape[1], self.n, self.n))
        full[:, self._i, self._j] = sums
        full[:, self._j, self._i] = sums
        return full


def normal_equations(outer: OuterProducts, scales: list[Array], target: Array) -> NormalEquations:
    """Gram matrices and moments of the designs [diag(s_1) U, …, diag(s_k) U].

    Parameters
    ----------
    outer : of the counts U [row, n].
    scales : k arrays [row, test]; 0 leaves a row out.
    target : y [row, test], finite everywhere.
    """
    n, k, tests = outer.n, len(scales), target.shape[1]
    gram = np.empty((tests, k * n, k * n))
    moment = np.empty((tests, k * n))
    for a in range(k):
        rows = slice(a * n, (a + 1) * n)
        moment[:, rows] = (outer.counts.T @ (scales[a] * target)).T
        for b in range(a, k):
            columns = slice(b * n, (b + 1) * n)
            block = outer.weighted(scales[a] * scales[b])  # symmetric: Uᵀ diag(w) U
            gram[:, rows, columns] = block
            gram[:, columns, rows] = block
    return NormalEquations(gram, moment)


@dataclass(frozen=True)
class Solution:
    """coefficients [test, p]; singular [test]: where only a minimum-norm solution exists."""

    coefficients: Array
    singular: npt.NDArray[np.bool_]


def solve(
    equations: NormalEquations, penalty: float, center: Array | None = None, metric: Array | None = None
) -> Solution:
    """argmin_θ ‖X θ − y‖² + λ (θ − θ₀)ᵀ P (θ − θ₀), for each test example:

        (G + λ P) θ = m + λ P θ₀

    Parameters
    ----------
    penalty : λ ≥ 0.
    center : θ₀ [p]; None for zero.
    metric : P [p, p], positive semi-definite; None for the identity.
    """
    gram = torch.from_numpy(equations.gram)
    moment = torch.from_numpy(equations.moment)[..., None]
    if center is not None:
        pull = center if metric is None else metric @ center
        moment = moment + penalty * torch.from_numpy(pull)[:, None]
    if metric is None:
        system = gram.clone()
        system.diagonal(dim1=-2, dim2=-1).add_(penalty)
    else:
        system = gram + penalty * torch.from_numpy(metric)
    factor, failed = torch.linalg.cholesky_ex(system)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    scale = system.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(torch.finfo(torch.float64).tiny)
    # a pivot at rounding level: Cholesky went through on noise alone
    weak = diagonal.amin(-1) ** 2 < 1e-13 * scale
    singular = (failed > 0) | weak | ~torch.isfinite(diagonal).all(-1)
    coefficients = torch.empty_like(moment)
    good = ~singular
    coefficients[good] = torch.cholesky_solve(moment[good], factor[good])
    for z in torch.nonzero(singular).flatten():
        coefficients[z] = torch.linalg.pinv(system[z], hermitian=True, rtol=1e-12) @ moment[z]
    return Solution(coefficients[..., 0].numpy(), singular.numpy())


def _pairs(counts: sparse.csr_array) -> tuple[npt.NDArray[np.int64], ...]:
    """All pairs of stored entries of the same row, each with j ≥ i: (row, place of i, place of j)."""
    sizes = np.diff(counts.indptr)
    nothing = np.empty(0, np.int64)
    rows, lefts, rights = [nothing], [nothing], [nothing]
    for size in np.unique(sizes):  # rows of one size at a time, so that no loop runs over rows
        of_size = np.flatnonzero(sizes == size)
        a, b = np.triu_indices(size)
        start = counts.indptr[of_size][:, None]
        rows.append(np.repeat(of_size, len(a)))
        lefts.append((start + a).ravel())
        rights.append((start + b).ravel())
    return tuple(np.concatenate(parts).astype(np.int64) for parts in (rows, lefts, rights))
