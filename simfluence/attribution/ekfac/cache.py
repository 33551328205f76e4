"""A cache of gradients between two passes over the same examples, where there is memory for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from simfluence.attribution.buffers import fresh
from simfluence.attribution.gradient_parts import GradientPart, place
from simfluence.attribution.tracing import Traced


class GradientCache:
    """Keeps all batches, or none if the gradients of all examples are not expected to fit.

    examples : how many there will be. memory : the bytes that may be used. A tensor that several layers share
    counts once.
    """

    def __init__(self, examples: int, memory: float) -> None:
        self._examples, self._memory = examples, memory
        self._seen = self._bytes = 0
        self._batches: list[Traced] | None = []

    def add(self, traced: Traced, *, copy: bool) -> None:
        """Keep the next batch. copy : into buffers of its own (:func:`.buffers.fresh`)."""
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
        """Whether the gradients of all examples are kept."""
        return self._batches is not None and self._seen == self._examples

    def taken(self) -> Iterator[Traced]:
        """The batches in their order; each is removed from the cache when it is yielded."""
        batches, self._batches = self._batches or [], None
        while batches:
            yield batches.pop(0)


def size(traced: Traced) -> int:
    """The bytes that the gradient parts of a batch take."""
    tensors = {place(values): values for parts in traced.parts.values() for values in _tensors(parts)}
    return sum(values.numel() * values.element_size() for values in tensors.values())


def _copied(values: Tensor) -> Tensor:
    return fresh(values, *values.shape).copy_(values)


def _tensors(parts: Sequence[GradientPart]) -> Iterator[Tensor]:
    return (values for part in parts for values in vars(part).values() if isinstance(values, Tensor))
