"""The batch size of a pass over examples, found by memory.

On a GPU the largest batch is tried first, and halved as long as it is out of memory. On a CPU, where a
process that takes too much is killed, it is halved as long as what one example takes, times the batch, is
more than half of the memory that is available.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from simfluence.attribution.objective import Objective, losses_of

_MOST = {"cpu": 8}
_MOST_ELSEWHERE = 128
"""Batches are no larger: on a CPU more examples a batch are no faster, and are padded more."""
_TIMES_SAVED = 3
"""What a pass takes, as a multiple of what its forward pass saves: also the gradients of outputs, and copies
whose rows are in the order of the examples. Measured on MiniLM: 1.8 to 2.2."""


def longest(examples: Sequence[Any], texts: Sequence[str], count: int = _MOST_ELSEWHERE) -> list[Any]:
    """So many examples at most, those with the longest texts first."""
    order = sorted(range(len(examples)), key=lambda i: -len(texts[i]))
    return [examples[i] for i in order[:count]]


def fitting_batch_size(
    objective: Objective, examples: Sequence[Any], attempt: Callable[[Sequence[Any]], object]
) -> int:
    """The largest batch, a power of two, whose pass fits into memory; 1 if none does.

    examples : the longest ones, of which batches are tried. attempt : the pass over a batch.
    """
    device = next(objective.module.parameters()).device.type
    most = _MOST.get(device, _MOST_ELSEWHERE)
    while most > max(1, len(examples)):
        most //= 2
    if device == "cpu":
        return _halved_to(most, available_memory(), _TIMES_SAVED * saved_bytes(objective, examples[:1]))
    return _largest_that_fits(most, lambda size: attempt(examples[:size]))


def _halved_to(most: int, available: float, each: float) -> int:
    while most > 1 and 2 * most * each > available:
        most //= 2
    return most


def _largest_that_fits(most: int, attempt: Callable[[int], object]) -> int:
    while most > 1:
        try:
            attempt(most)
            return most
        except torch.cuda.OutOfMemoryError:
            pass  # what the pass holds is freed when the exception is
        torch.cuda.empty_cache()
        most //= 2
    return 1


def saved_bytes(objective: Objective, examples: Sequence[Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in objective.module.parameters()}
    sizes: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return saved.detach()  # not the tensor itself, which would keep itself alive

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda saved: saved):
        losses_of(objective, examples)
    return sum(sizes.values())


def available_memory() -> float:
    """Bytes of memory that a process can take before others have to give theirs up; infinite where the
    system does not say."""
    file = Path("/proc/meminfo")
    if not file.exists():
        return float("inf")
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return 1024.0 * int(lines["MemAvailable"].split()[0])
