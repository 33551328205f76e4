"""What one step consumed: the examples, the loss and the learning rates, of each process and of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from simfluence.curriculum import IntArray
from simfluence.errors import RunDataError
from simfluence.recording.stream import StreamTable
from simfluence.recording.watch import OptimizerWatch
from simfluence.runs import ExampleTable

NOTHING: IntArray = np.empty(0, np.int64)


@dataclass(frozen=True)
class Step:
    """A step, of one process or of all.

    batch : rows of the training table (of a stream, entries that are not numbered yet); empty for a step that
        did not train.
    learning_rate, train_loss : None where they are not known.
    group_rates : the learning rate of every parameter group, () without an optimizer.
    trained : False if it is certain that no weight was changed.
    """

    batch: IntArray
    learning_rate: float | None
    group_rates: tuple[float, ...]
    train_loss: float | None
    trained: bool


class Consumption:
    """Collects what this process consumes between two steps."""

    def __init__(self, train: ExampleTable | StreamTable, watch: OptimizerWatch) -> None:
        self._train, self._watch = train, watch
        self._batches: list[npt.NDArray[Any]] = []

    def add(self, example_ids: Iterable[Any]) -> None:
        """Raises RunDataError for ids that are not in the training table, or what is no batch of a stream."""
        if isinstance(self._train, StreamTable):
            self._batches.append(self._train.rows(example_ids))
            return
        if isinstance(example_ids, str):
            raise RunDataError(f"expected a list of example ids, got the string {example_ids!r}")
        if isinstance(example_ids, torch.Tensor | np.ndarray):
            example_ids = example_ids.tolist()
        ids = example_ids if isinstance(example_ids, Iterable) else [example_ids]
        self._batches.append(self._train.rows(ids))

    def clear(self) -> None:
        self._batches = []

    def take(self, example_ids: Iterable[Any] | None, train_loss: Any, learning_rate: Any) -> Step:
        """This process's share of a step, of all that was added since the last; then nothing is left.

        Raises RunDataError for ids that are not in the table or missing, ValueError for no number.
        """
        taken = self._watch.taken()
        try:
            if example_ids is not None:
                self.add(example_ids)
            batch = np.concatenate([NOTHING, *self._batches])
        finally:
            self.clear()
        if taken.trained and len(batch) == 0:
            raise RunDataError(
                "it has no example ids: pass example_ids=, the ids of the examples of this step's batch"
            )
        loss, rate = _number(train_loss, "train_loss"), _number(learning_rate, "learning_rate")
        if rate is None and taken.rates and np.isfinite(taken.rates[self._watch.main]):
            rate = taken.rates[self._watch.main]
        return Step(batch, rate, taken.rates, loss, taken.trained)


def whole_step(shares: Sequence[Step]) -> Step:
    """The step of all processes: their batches one after the other, the mean of their losses."""
    losses = [share.train_loss for share in shares if share.train_loss is not None]
    loss = float(np.mean(losses)) if losses else None
    first = shares[0]
    if not any(share.trained for share in shares):
        return Step(NOTHING, 0.0, (0.0,) * len(first.group_rates), loss, trained=False)
    batch = np.concatenate([share.batch for share in shares])
    return Step(batch, first.learning_rate, first.group_rates, loss, trained=True)


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a number or a tensor of one, got {str(value)[:80]}") from None
