"""The blocks of EK-FAC's factors as dense matrices, for its tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simfluence.attribution import EKFACFactors
from simfluence.attribution.ekfac.blocks import Block


def recomposed(factors: EKFACFactors, block: Block) -> Tensor:
    """The block of the Fisher matrix, [number, number], in the order of the flat matrix [out, in]."""
    factor = factors.factors[block.name]
    if block.treatment == "diagonal":
        return factor.eigenvalues.flatten().diag()
    basis = factor.out_basis
    if block.treatment == "kronecker":
        basis = torch.kron(factor.out_basis, factor.in_basis)
    return basis @ factor.eigenvalues.flatten().diag() @ basis.T


def flat_blocks(factors: EKFACFactors, gradients: Tensor, parameters: dict[str, nn.Parameter]) -> dict:
    """block → gradients [example, number] in the order of the block's matrix."""
    sizes = [p.numel() for p in parameters.values()]
    parts = dict(zip(parameters, gradients.split(sizes, 1), strict=True))
    found = {}
    for block in factors.blocks:
        weight = parts[block.parameters[0]].reshape(-1, *parameters[block.parameters[0]].shape)
        if block.ones:
            bias = parts[block.parameters[1]]
            bias = bias[:, :, None] if block.ones == "right" else bias[:, None, :]
            weight = torch.cat([weight, bias], 2 if block.ones == "right" else 1)
        found[block.name] = weight.flatten(1)
    return found


def damped(matrix: Tensor, damping: float) -> Tensor:
    return matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
