"""Gradients that are kept between two passes over the same examples, where there is memory for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from simfluence.attribution.buffers import fresh
from simfluence.attribution.gradient_parts import GradientPart, place
from simfluence.attribution.tracing import Traced


class GradientCache:
    """Batches one after another; none at all as soon as all ``examples`` are not expected to fit.

    memory : bytes. What several layers share is there once.
    """

    def __init__(self, examples: int, memory: float) -> None:
        self._examples, self._memory = examples, memory
        self._seen = self._bytes = 0
        self._batches: list[Traced] | None = []

    def add(self, traced: Traced, *, copy: bool) -> None:
        """copy : into :func:`.memory.fresh` memory, if it is not there."""
        if self._batches is None:
            return
        self._seen += len(traced.losses)
        self._bytes += size(traced)
        if self._bytes * self._examples > self._memory * self._seen:
            self._batches = None
        else:
            self._batches.append(traced.each(_copied) if copy else traced)

    @property
    def complete(self) -> bool:
        """Whether all examples are there."""
        return self._batches is not None and self._seen == self._examples

    def taken(self) -> Iterator[Traced]:
        """The batches, in their order; each is forgotten when it has been given."""
        batches, self._batches = self._batches or [], None
        while batches:
            yield batches.pop(0)


def size(traced: Traced) -> int:
    """Bytes of its parts."""
    tensors = {place(values): values for parts in traced.parts.values() for values in _tensors(parts)}
    return sum(values.numel() * values.element_size() for values in tensors.values())


def _copied(values: Tensor) -> Tensor:
    return fresh(values, *values.shape).copy_(values)


def _tensors(parts: Sequence[GradientPart]) -> Iterator[Tensor]:
    return (values for part in parts for values in vars(part).values() if isinstance(values, Tensor))
