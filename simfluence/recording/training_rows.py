"""Which training examples are in the batches of a ``transformers.Trainer``.

Every row of the training data set holds one example, or several where rows are packed. Row numbers travel
with the examples through the data loader, beside what the collator makes of them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset

from simfluence.errors import RecordingError, RunDataError
from simfluence.recording.stream import SPANS, Entry, entry_of, spans_of
from simfluence.runs import ExampleTable

ROW = "simfluence_row"
"""The name under which a batch has the numbers of its rows, or what is known of them."""


class RowOrderWarning(UserWarning):
    """Training rows without ids were taken to be the recorder's training examples, in their order."""


class Numbered(torch.utils.data.Dataset):
    """Wraps a data set so that each item comes with its number; all else is the data set's own."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        if hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._several

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return int(number), self._dataset[number]

    def _several(self, numbers: list[int]) -> list[tuple[int, Any]]:
        return list(zip(map(int, numbers), self._dataset.__getitems__(numbers), strict=True))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # while it is being copied to a worker process
            raise AttributeError(name)
        return getattr(self._dataset, name)


class CollateNumbered:
    """Collates items that come with their numbers, which it adds to the batch."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: list[tuple[int, Any]]) -> Any:
        return _with_rows(self._collate([features for _, features in items]), [row for row, _ in items])


class CollateStreamed:
    """Collates the items of a stream, whose numbers in the training table it knows by their ids.

    column : the field of an item that has its id.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], table: ExampleTable, column: str) -> None:
        self._collate, self._table, self._column = collate, table, column

    def __call__(self, items: list[Any]) -> Any:
        for item in items:
            if not isinstance(item, Mapping) or self._column not in item:
                raise RecordingError(
                    f"the examples of a streamed training set are followed by their ids, and this one has no"
                    f" field {self._column!r}; keep one in the stream, and name it by example_ids="
                )
        rows = self._table.rows([item[self._column] for item in items]).tolist()
        return _with_rows(self._collate(items), rows)


class CollateByContent:
    """Collates the items of a stream, each of which is known by its content (:mod:`.stream`).

    What the training table has of each item travels with the batch, as bytes: a tensor is all that the data
    loader's worker processes, and what wraps the loader, are sure to pass on.

    column : the field of an item that has its id, if any has one. packed : whether an item holds several.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], column: str | None, packed: bool) -> None:
        self._collate, self._column, self._packed = collate, column, packed

    def __call__(self, items: list[Any]) -> Any:
        held = [self._examples_in(item) for item in items]
        texts = [json.dumps([list(entry_of(one)) for one in examples]).encode() for examples in held]
        width = max(map(len, texts))
        return _with_rows(self._collate(items), [list(text.ljust(width)) for text in texts], torch.uint8)

    def _examples_in(self, item: Any) -> list[Any]:
        if self._packed:
            if not isinstance(item, Mapping) or SPANS not in item:
                raise RecordingError(
                    f"the rows of this packed stream do not say which examples are in them (no {SPANS!r}):"
                    " use packing_strategy='bfd', or do not pack"
                )
            return list(spans_of(item))
        if not isinstance(item, Mapping):
            return [item]
        rest = {name: value for name, value in item.items() if name not in ("id", self._column)}
        return [rest if self._column is None else {**rest, "id": item.get(self._column)}]

    @staticmethod
    def read(rows: torch.Tensor) -> list[Entry]:
        """The examples of a batch, from what travelled with it."""
        return [Entry(*entry) for row in rows.cpu().numpy() for entry in json.loads(row.tobytes())]


def _with_rows(batch: Any, rows: Sequence[Any], dtype: torch.dtype = torch.int64) -> Any:
    if not hasattr(batch, "__setitem__") or not hasattr(batch, "keys"):
        raise RecordingError(f"batches must be mappings to be followed, got {type(batch).__name__}")
    batch[ROW] = torch.tensor(rows, dtype=dtype)
    return batch


def is_streamed(dataset: Any) -> bool:
    """Whether a data set can only be gone through, and its length is not known."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")


def held_rows(
    dataset: Any, table: ExampleTable, example_ids: str | Sequence[Any], packed: bool
) -> list[list[int]]:
    """The rows of the training table that each row of the data set holds.

    example_ids : the id of each row, or a list of those it holds; or the column that has them.
    packed : whether rows may hold several examples though they do not say so.

    Raises RunDataError for ids that are not in the table, or as many as there are rows.
    """
    if not isinstance(example_ids, str):
        ids = list(example_ids)
    elif example_ids in (getattr(dataset, "column_names", None) or ()):
        ids = list(dataset[example_ids])
    elif isinstance(dataset[0], Mapping) and example_ids in dataset[0]:
        ids = [example[example_ids] for example in dataset]
    elif packed:
        raise RunDataError(
            "the trainer packs several examples into a row, and its rows do not say which: pass"
            " example_ids=packed_ids(trainer, dataset), see simfluence.recording.packing"
        )
    else:
        ids = table.ids
        if len(ids) == len(dataset):
            warnings.warn(
                f"the training set has no column {example_ids!r}: its rows are taken to be the recorder's"
                " training examples in their order, which is wrong if the data set was shuffled; keep the"
                " column, or pass example_ids=, one id a row",
                RowOrderWarning,
                stacklevel=3,
            )
    if len(ids) != len(dataset):
        raise RunDataError(
            f"the training set has {len(dataset)} rows, but there are {len(ids)} ids for them; give the data"
            f" set a column {example_ids!r}, or pass example_ids=, one id a row"
        )
    several = [held if isinstance(held, list | tuple) else [held] for held in ids]
    return [table.rows(held).tolist() for held in several]
