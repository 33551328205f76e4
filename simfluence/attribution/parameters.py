"""Which parameters gradients are taken of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn


def selected_parameters(
    module: nn.Module, parameters: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """name → parameter, in the order of ``module.named_parameters()``; a shared one once.

    parameters : None: all that require gradients. Otherwise names ("head.weight"), their beginnings up to a
        dot ("encoder.layer.5"), or patterns ("*lora_*"); these may choose frozen parameters too.

    Raises ValueError for a name that no parameter has, parameters of whole numbers, and if none is chosen.
    """
    if isinstance(parameters, str):
        raise ValueError(
            f"parameters must be a list of names, got the text {parameters!r}: write [{parameters!r}]"
        )
    if parameters is None:
        chosen = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not chosen:
            raise ValueError("the model has no parameter that requires gradients: nothing to attribute to")
        return chosen
    if not parameters:
        raise ValueError("parameters is an empty list: nothing to attribute to")
    every_name = list(module.named_parameters(remove_duplicate=False))
    wanted: set[int] = set()
    for pattern in parameters:
        found = {id(p) for name, p in every_name if _matches(name, pattern)}
        if not found:
            names = [name for name, _ in every_name]
            shown = ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")
            raise ValueError(f"no parameter is named, or lies within, {pattern!r}; there are {shown}")
        wanted |= found
    selected = {name: p for name, p in module.named_parameters() if id(p) in wanted}
    for name, p in selected.items():
        if not p.dtype.is_floating_point:
            raise ValueError(
                f"{name} has no gradient: it holds whole numbers ({p.dtype}), as quantised weights do; choose"
                " parameters that are trained beside it, such as '*lora_*'"
            )
    return selected


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


@contextmanager
def requiring_gradients(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, all of these require gradients; outside, those that did before."""
    frozen = [parameter for parameter in parameters.values() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def dense_gradients(module: nn.Module) -> Iterator[None]:
    """Inside, embeddings with sparse gradients have dense ones, which can be differentiated again."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    sparse = [inner for inner in module.modules() if isinstance(inner, kinds) and inner.sparse]
    try:
        for inner in sparse:
            inner.sparse = False
        yield
    finally:
        for inner in sparse:
            inner.sparse = True


@contextmanager
def restored(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Whatever is written into these parameters inside, outside they have the values that they had before."""
    before = [parameter.detach().clone() for parameter in parameters.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters.values(), before, strict=True):
                parameter.copy_(value)


def share_of_trained(module: nn.Module, names: Collection[str]) -> float | None:
    """The share, 0 .. 1, of the numbers that are trained (require gradients) in parameters of these names.

    None if nothing is trained.
    """
    sizes = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    total = sum(sizes.values())
    return sum(size for name, size in sizes.items() if name in names) / total if total else None
