"""Products of sparse counts with dense vectors on a GPU, what its iterations spend their time in."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse


class CountProducts:
    """U v and Uᵀ r for dense v [n, c], r [row, c], on the given device, in double or single precision."""

    def __init__(self, counts: sparse.csr_array, device: torch.device) -> None:
        self.device = device
        pair = (counts, counts.T.tocsr())
        self._matrices = {
            dtype: [_torch_csr(matrix, device).to(dtype) for matrix in pair]
            for dtype in (torch.float32, torch.float64)
        }

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """U v"""
        return self._matrices[vectors.dtype][0] @ vectors

    def backward(self, rows: torch.Tensor) -> torch.Tensor:
        """Uᵀ r"""
        return self._matrices[rows.dtype][1] @ rows


def _torch_csr(matrix: sparse.csr_array, device: torch.device) -> torch.Tensor:
    pointers, indices = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        made = torch.sparse_csr_tensor(
            pointers, indices, torch.from_numpy(matrix.data), matrix.shape, check_invariants=True
        )
        return made.to(device)
