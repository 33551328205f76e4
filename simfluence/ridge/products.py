"""Products of sparse counts with dense vectors on a GPU, what its iterations spend their time in."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse


class CountProducts:
    """U v and Uᵀ r for dense v [n, c], r [row, c], on the given device, in double or single precision.

    total : U 1, how many examples each row has, [row, 1].
    """

    def __init__(self, counts: sparse.csr_array, device: torch.device) -> None:
        self.device = device
        counts = counts.copy()
        counts.sum_duplicates()  # and in order, as torch wants a row's entries
        exact = [_torch_csr(matrix, device) for matrix in (counts, counts.T.tocsr())]
        self._matrices = {
            dtype: [matrix.to(dtype) for matrix in exact] for dtype in (torch.float32, torch.float64)
        }
        self._squares = _with_values(exact[1], exact[1].values().square())
        self.total = self.forward(torch.ones(counts.shape[1], 1, dtype=torch.float64, device=device))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """U v"""
        return self._matrices[vectors.dtype][0] @ vectors

    def backward(self, rows: torch.Tensor) -> torch.Tensor:
        """Uᵀ r"""
        return self._matrices[rows.dtype][1] @ rows

    def squares_backward(self, rows: torch.Tensor) -> torch.Tensor:
        """(U ∘ U)ᵀ r, in double precision"""
        return self._squares @ rows


def _torch_csr(matrix: sparse.csr_array, device: torch.device) -> torch.Tensor:
    pointers, indices = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return _checked_csr(
        pointers, indices, torch.from_numpy(matrix.data.astype(np.float64, copy=False)), matrix.shape
    ).to(device)


def _with_values(matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return _checked_csr(matrix.crow_indices(), matrix.col_indices(), values, tuple(matrix.shape))


def _checked_csr(
    pointers: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")  # they are not
        return torch.sparse_csr_tensor(pointers, indices, values, shape, check_invariants=True)
