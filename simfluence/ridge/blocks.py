"""What preconditions the iterative solvers: inverses of small blocks, one an example, of G + λP.

An example's own coefficients are nearly collinear (s is nearly constant along a run), while those of
different examples are nearly orthogonal where curricula are shuffled.
"""

from __future__ import annotations

import torch


def inverse(
    diagonal: torch.Tensor, mean: torch.Tensor | None, penalty: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(G + λP)⁻¹ of the blocks of each example, and of the blocks' averages where P leaves them free.

    Parameters
    ----------
    diagonal : the k × k diagonal blocks of G, [group, k, k, n, column or 1].
    mean : NᵀGN for pooled systems, N = I_k ⊗ 1/√n, [group, k, k, column or 1]; else None.
    penalty : λ [column].
    """
    k, n = diagonal.shape[1], diagonal.shape[3]
    share = 1.0 if mean is None else 1 - 1 / n
    tiny = torch.finfo(penalty.dtype).tiny
    blocks = diagonal.expand(*diagonal.shape[:-1], len(penalty)).clone()
    for a in range(k):
        blocks[:, a, a] += share * penalty
        blocks[:, a, a].clamp_min_(tiny)
    if mean is None:
        return _inverse(blocks), None
    mean = mean.expand(*mean.shape[:-1], len(penalty)).clone()
    for a in range(k):
        mean[:, a, a] *= 1 + 1e-10
        mean[:, a, a].clamp_min_(tiny)
    return _inverse(blocks), _inverse(mean[..., None, :])[..., 0, :]


def _inverse(blocks: torch.Tensor) -> torch.Tensor:
    """Inverses of positive definite k × k matrices laid out as [group, k, k, n, column]."""
    k = blocks.shape[1]
    if k == 1:
        return 1 / blocks
    if k == 2:
        a, b, d = blocks[:, 0, 0], blocks[:, 0, 1], blocks[:, 1, 1]
        # collinear to rounding: keep it positive
        accuracy = 50 * torch.finfo(blocks.dtype).eps
        determinant = torch.maximum(a * d - b * b, accuracy * a * d)
        return torch.stack([torch.stack([d, -b], 1), torch.stack([-b, a], 1)], 1) / determinant[:, None, None]
    return torch.linalg.pinv(blocks.movedim((1, 2), (-2, -1)), hermitian=True).movedim((-2, -1), (1, 2))
