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

from simfluence.errors import RecordingError

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

    def gather_results(self, make: Callable[[], T]) -> list[T]:
        """Every process calls ``make``, and all get all results; an error in one is raised in all."""
        mine: T | None = None
        error: Exception | None = None
        try:
            mine = make()
        except Exception as found:
            error = found
        gathered = self.gather((mine, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, failure) in enumerate(gathered):
            if failure is not None:
                raise RecordingError(f"process {rank} failed: {failure}")
        return [result for result, _ in gathered if result is not None]

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
