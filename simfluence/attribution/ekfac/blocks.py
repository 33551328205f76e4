"""How each parameter enters the approximate Fisher matrix. None is left out; the coverage lists them all.

kronecker   weights of linear maps (nn.Linear, Conv1D, LoRA's), with their bias as an input that is 1
dense       anything else of few numbers: norms, scales, lone biases
diagonal    anything else of many: embeddings, weights that are tied to them, very wide maps
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simfluence.attribution.gradient_parts import GradientPart, Outer, merged
from simfluence.attribution.layers import CONV1D, LINEAR
from simfluence.attribution.tracing import Traced, Tracer

Treatment = Literal["kronecker", "dense", "diagonal"]

DENSE_LIMIT = 2048
"""A block with more numbers is diagonal, not dense."""

SIDE_LIMIT = 10_000
"""A linear map with more inputs or outputs is no Kronecker block: its factors would have that many rows and
columns."""


@dataclass(frozen=True)
class Block:
    """Parameters whose Fisher matrix is approximated together; between blocks it is taken to be zero.

    name : the module's (of a linear map with its bias), or the parameter's.
    parameters : a linear map's weight, and its bias if that is in the block; otherwise a single one.
    shape : the matrix [out, in] of a Kronecker block, a bias being one more column (one more row of a
        Conv1D's, whose weight is [in, out]); otherwise the parameter's.
    ones : which side of the outer product ("left", "right") has an input that is 1.
    """

    name: str
    parameters: tuple[str, ...]
    treatment: Treatment
    shape: tuple[int, ...]
    ones: Literal["left", "right", ""] = ""

    @property
    def size(self) -> int:
        return int(torch.Size(self.shape).numel())

    def parts(self, traced: Traced) -> list[GradientPart]:
        """The gradient parts of the block's parameters; [] if the losses do not depend on them."""
        found = merged(traced.parts.get(self.parameters[0], []))
        if not found or not self.ones:
            return found
        outer = self.outer(found)
        left = _with_ones(outer.left) if self.ones == "left" else outer.left
        right = _with_ones(outer.right) if self.ones == "right" else outer.right
        return [Outer(left, right, outer.mask)]

    def outer(self, parts: Sequence[GradientPart]) -> Outer:
        """The only one of the merged gradient parts of a Kronecker block.

        Raises ValueError if some batch uses the weight in another way than its linear map.
        """
        if len(parts) != 1 or not isinstance(parts[0], Outer):
            raise ValueError(
                f"some examples use {self.parameters[0]} otherwise than by calling {self.name}, which has no"
                " Kronecker factors: leave it out (parameters=), or choose another method"
            )
        return parts[0]

    def as_manifest(self) -> dict[str, Any]:
        return {**vars(self), "parameters": list(self.parameters), "shape": list(self.shape)}

    @classmethod
    def from_manifest(cls, entry: dict[str, Any]) -> Block:
        return cls(**{**entry, "parameters": tuple(entry["parameters"]), "shape": tuple(entry["shape"])})


def blocks_of(trace: Tracer) -> list[Block]:
    """The blocks of all parameters that are traced, in their order."""
    users: dict[str, list[tuple[Any, str]]] = defaultdict(list)
    for layer in trace.layers:
        for own, name in layer.parameters.items():
            users[name].append((layer, own))
    found: dict[str, Block] = {}
    joined: set[str] = set()
    for name, parameter in trace.parameters.items():
        if (block := _kronecker(name, parameter, users, trace.parameters)) is not None:
            found[name] = block
            joined |= set(block.parameters[1:])
        else:
            treatment: Treatment = "dense" if parameter.numel() <= DENSE_LIMIT else "diagonal"
            found[name] = Block(name, (name,), treatment, tuple(parameter.shape))
    return [block for name, block in found.items() if name not in joined]


def _kronecker(
    name: str,
    weight: nn.Parameter,
    users: dict[str, list[tuple[Any, str]]],
    parameters: dict[str, nn.Parameter],
) -> Block | None:
    """The block of a linear map's weight; None for other parameters."""
    kinds = {layer.kind for layer, own in users[name] if own == "weight"}
    if not kinds or not kinds <= {LINEAR, CONV1D} or len(kinds) > 1 or max(weight.shape) > SIDE_LIMIT:
        return None
    layer, _ = users[name][0]
    rows, columns = weight.shape
    bias = layer.parameters.get("bias")
    if len(users[name]) > 1 or bias is None or len(users[bias]) > 1:
        return Block(name, (name,), "kronecker", (rows, columns))
    if CONV1D in kinds:
        return Block(layer.name, (name, bias), "kronecker", (rows + 1, columns), "left")
    return Block(layer.name, (name, bias), "kronecker", (rows, columns + 1), "right")


def _with_ones(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1)


def covered(blocks: Sequence[Block]) -> tuple[str, ...]:
    """All parameters, by name."""
    return tuple(name for block in blocks for name in block.parameters)
