"""Layers, what their calls saw, and where a graph uses parameters: what the tracer's hooks work with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from simfluence.attribution.layers import Kind, kind_of, wide_type


@dataclass(frozen=True)
class Layer:
    """A module with chosen parameters. parameters : the module's name for each → the model's name."""

    name: str
    module: nn.Module
    kind: Kind
    parameters: dict[str, str]


@dataclass(frozen=True)
class Call:
    """One call of a module: what it saw [row or example, …], and where its output is in the graph."""

    layer: Layer
    seen: Tensor
    edge: GradientEdge
    unchanged: Callable[[], bool]

    def values(self) -> Tensor:
        """``seen``, in single precision at least. Raises ValueError if it was changed since."""
        if not self.unchanged():
            raise ValueError(f"the input of {self.layer.name} was changed in place after it was used")
        return self.seen if self.seen.dtype == torch.long else wide(self.seen)


def layers_of(module: nn.Module, parameters: dict[str, nn.Parameter]) -> list[Layer]:
    """The modules of a known kind that have some of the parameters (name → parameter)."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    found = []
    for name, inner in module.named_modules():
        if (kind := kind_of(inner)) is None:
            continue
        own = {
            local: names[id(p)]
            for local, p in inner.named_parameters()
            if id(p) in names
            and any(local == k or (k[-1] == "." and local.startswith(k)) for k in kind.parameters)
        }
        if own:
            found.append(Layer(name, inner, kind, own))
    return found


def wide(values: Tensor) -> Tensor:
    """Dense, in single precision at least."""
    values = values.detach()
    return (values.to_dense() if values.is_sparse else values).to(wide_type(values))


def stacked_or_none(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """[example, …], zeros for None; None if all are."""
    known = [wide(gradient) for gradient in gradients if gradient is not None]
    if not known:
        return None
    return torch.stack([torch.zeros_like(known[0]) if g is None else wide(g) for g in gradients])


def uses(losses: Tensor) -> Counter[int]:
    """The id of a parameter → the number of places in the graph where it is used."""
    found: Counter[int] = Counter()
    waiting, known = [losses.grad_fn], {losses.grad_fn}
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions if node is not None else ():
            if (leaf := getattr(following, "variable", None)) is not None:
                found[id(leaf)] += 1
            elif following is not None and following not in known:
                known.add(following)
                waiting.append(following)
    return found
