"""The approximate Fisher matrix of a model, block by block, with the fingerprint of the model's weights.

A Kronecker block is (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ, a dense one Q diag(Λ) Qᵀ, a diagonal one diag(Λ).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from simfluence.attribution.checkpoints import weights_fingerprint
from simfluence.attribution.ekfac.blocks import Block, covered
from simfluence.errors import RunDataError
from simfluence.runs.storage import write_atomically

_FORMAT = "simfluence ekfac 1"

RELATIVE_DAMPING = 0.1
"""λ of a block, as a share of its mean eigenvalue (Grosse et al. 2023)."""


@dataclass(frozen=True)
class Factors:
    """The factors of one block.

    eigenvalues : Λ, in the block's shape (for a dense block [number]).
    out_basis, in_basis : eigenvectors in columns, Q_S [out, out] and Q_A [in, in]; a dense block has its Q
        [number, number] as out_basis; a diagonal one has none.
    out_values, in_values : eigenvalues of S and A, sums over tokens divided by ``tokens``.
    tokens : the mean number of tokens in an example.
    """

    eigenvalues: Tensor
    out_basis: Tensor | None = None
    in_basis: Tensor | None = None
    out_values: Tensor | None = None
    in_values: Tensor | None = None
    tokens: float = 1.0

    def kfac_eigenvalues(self) -> Tensor:
        """The eigenvalues of K-FAC, which takes inputs and gradients for independent: tokens · λ_S λ_Aᵀ.

        For blocks that are not Kronecker, Λ.
        """
        if self.out_values is None or self.in_values is None:
            return self.eigenvalues
        return self.tokens * torch.outer(self.out_values, self.in_values)

    def damping(self) -> float:
        """λ = 0.1 · mean(Λ)."""
        return RELATIVE_DAMPING * float(self.eigenvalues.mean(dtype=torch.float64))


@dataclass(frozen=True)
class EKFACFactors:
    """The factors of all blocks.

    blocks, factors : in the same order; factors by the block's name.
    about : the weights' fingerprint, which Fisher matrix, seed, how many examples.
    """

    blocks: tuple[Block, ...]
    factors: Mapping[str, Factors]
    about: Mapping[str, Any]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that are covered."""
        return covered(self.blocks)

    @property
    def coverage(self) -> pd.DataFrame:
        """A row a block: name, parameters, treatment, shape, size, mean_eigenvalue, and the damping that is
        the default (0: no gradient ever reached it, and it adds nothing to scores)."""
        return pd.DataFrame(
            {
                "block": block.name,
                "parameters": ", ".join(block.parameters),
                "treatment": block.treatment,
                "shape": " x ".join(map(str, block.shape)),
                "size": block.size,
                "mean_eigenvalue": self.factors[block.name].damping() / RELATIVE_DAMPING,
                "damping": self.factors[block.name].damping(),
            }
            for block in self.blocks
        )

    def check(self, module: nn.Module) -> None:
        """RunDataError if the factors are not of these weights."""
        if (found := weights_fingerprint(module)) != self.about["weights"]:
            raise RunDataError(
                f"these factors were made with other weights ({self.about['weights']}, the model has"
                f" {found}): make them anew with ekfac_factors"
            )

    def save(self, path: str | Path) -> None:
        """One safetensors file."""
        tensors: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, factor in self.factors.items():
            for what, value in vars(factor).items():
                if isinstance(value, Tensor):
                    key = f"{name}/{what}"
                    if (same := first.setdefault(id(value), key)) != key:
                        aliases[key] = same
                    else:
                        tensors[key] = value.contiguous().cpu()
        manifest = {
            "about": dict(self.about),
            "blocks": [block.as_manifest() for block in self.blocks],
            "tokens": {name: factor.tokens for name, factor in self.factors.items()},
            "aliases": aliases,
        }
        write_atomically(Path(path), save(tensors, {"format": _FORMAT, "manifest": json.dumps(manifest)}))

    @classmethod
    def load(cls, path: str | Path, module: nn.Module | None = None) -> EKFACFactors:
        """What ``save`` wrote. module : the model they are for; its weights must be the same.

        Raises RunDataError for anything else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise RunDataError(f"{path} does not hold EK-FAC factors (expected format {_FORMAT!r})")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RunDataError(f"{path} is damaged or no safetensors file: {error}") from error
        manifest = json.loads(metadata["manifest"])
        tensors |= {key: tensors[same] for key, same in manifest["aliases"].items()}
        blocks = tuple(Block.from_manifest(entry) for entry in manifest["blocks"])
        factors = {
            block.name: Factors(
                **{
                    key.rpartition("/")[2]: value
                    for key, value in tensors.items()
                    if key.rpartition("/")[0] == block.name
                },
                tokens=manifest["tokens"][block.name],
            )
            for block in blocks
        }
        found = cls(blocks, factors, manifest["about"])
        if module is not None:
            found.check(module)
            device = next(module.parameters()).device
            found = found.to(device)
        return found

    def to(self, device: torch.device | str) -> EKFACFactors:
        """The same on another device."""

        def moved(factor: Factors) -> Factors:
            tensors: Any = {k: v.to(device) for k, v in vars(factor).items() if isinstance(v, Tensor)}
            return replace(factor, **tensors)

        return EKFACFactors(self.blocks, {n: moved(f) for n, f in self.factors.items()}, self.about)


def differences(asked: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The names of the settings that differ, joined by "and"; "" if none does."""
    other = [key for key, value in asked.items() if found.get(key) != value]
    return " and ".join(key for key in other if key != "losses" or "weights" not in other)
