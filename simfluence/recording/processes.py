"""The processes of one data-parallel training, as far as recording needs them.

Started by torchrun or accelerate, every process runs the same script and records the same run: each process
names the examples in its share of a batch, and process 0 writes. Without torch.distributed there is one
process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """``rank`` of ``size`` processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Processes:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls()

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everyone's values, in the order of ranks; all processes must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def from_writer(self, make: Callable[[], T]) -> T:
        """Process 0 calls ``make``, and all processes get the result; an error is raised in all of them."""
        if self.size == 1:
            return make()
        made: list[Any] = [None, None]
        if self.is_writer:
            try:
                made[0] = make()
            except Exception as error:
                made[1] = error
        torch.distributed.broadcast_object_list(made)
        if made[1] is not None:
            raise made[1]
        return made[0]


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel, whose forward passes wait for other processes."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def is_sharded(model: Any) -> bool:
    """Whether its weights are spread over the processes (FSDP), so that all must run each forward pass."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return any(
        "FSDP" in kind.__name__ or kind.__name__ == "FullyShardedDataParallel"
        for module in modules
        for kind in type(module).__mro__
    )
