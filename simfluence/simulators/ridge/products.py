"""Products of sparse counts with dense vectors, the one operation that iterative solvers spend time in."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse


class CountProducts:
    """U v and Uᵀ r for dense v [n, c], r [row, c], on the given device, in double or single precision."""

    def __init__(self, counts: sparse.csr_array, device: torch.device) -> None:
        self.device, self._counts, self._on_cpu = device, counts, device.type == "cpu"
        pair = (counts, counts.T.tocsr())
        if self._on_cpu:
            self._bags = [_bags(matrix) for matrix in pair]
        else:
            self._matrices = {
                dtype: [_torch_csr(matrix, device).to(dtype) for matrix in pair]
                for dtype in (torch.float32, torch.float64)
            }

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """U v"""
        if not self._on_cpu:
            return self._matrices[vectors.dtype][0] @ vectors
        if vectors.dtype == torch.float64:  # scipy's product is several times faster here than torch's
            return torch.from_numpy(self._counts @ vectors.numpy())
        return _sum_bags(vectors, *self._bags[0])

    def backward(self, rows: torch.Tensor) -> torch.Tensor:
        """Uᵀ r"""
        if not self._on_cpu:
            return self._matrices[rows.dtype][1] @ rows
        if rows.dtype == torch.float64:
            return torch.from_numpy(self._counts.T @ rows.numpy())
        return _sum_bags(rows, *self._bags[1])


def _bags(matrix: sparse.csr_array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(columns, pointers, values) of the rows, for single precision sums."""
    integers = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indices, matrix.indptr))
    return (*integers, torch.from_numpy(matrix.data).float())  # type: ignore[return-value]


def _sum_bags(
    table: torch.Tensor, columns: torch.Tensor, pointers: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Sparse times dense: torch's sums of embeddings are vectorised as no sparse product is."""
    return torch.nn.functional.embedding_bag(
        columns, table, pointers, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def _torch_csr(matrix: sparse.csr_array, device: torch.device) -> torch.Tensor:
    pointers, indices = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        made = torch.sparse_csr_tensor(
            pointers, indices, torch.from_numpy(matrix.data), matrix.shape, check_invariants=True
        )
        return made.to(device)
