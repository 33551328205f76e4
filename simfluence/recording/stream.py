"""Training examples of a stream: known by their content, numbered as they come.

An example has no id before it is seen, unless it says one in a field ``id``. It is known by a hash of all
its other fields: the same text, messages or token ids are the same example, in every run. Two that differ in
anything (a label, a group, a counter) are two examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from simfluence.curriculum import IntArray
from simfluence.errors import RunDataError
from simfluence.runs import streams
from simfluence.runs.content import content_hash
from simfluence.runs.tables import as_text, identity_hash, row_of

TOKENS, MASK, SPANS = "input_ids", "attention_mask", "seq_lengths"


class Entry(NamedTuple):
    """An example as it stands in a table of examples."""

    id: str
    group: str
    hash: str
    text: str


class StreamTable:
    """The training table of one run over a stream; a row is added for each example that it has not.

    text : whether the texts of examples are kept.
    """

    def __init__(self, *, text: bool = True) -> None:
        self._text = text
        self._known: dict[str, tuple[int, str, str]] = {}  # id → row, group, hash
        self._new: list[Entry] = []

    def __len__(self) -> int:
        return len(self._known)

    @property
    def fingerprint(self) -> str:
        """That of the table as it stands, see :class:`~simfluence.runs.ExampleTable`."""
        return identity_hash([[name, group, digest] for name, (_, group, digest) in self._known.items()])

    def rows(self, examples: Iterable[Any]) -> npt.NDArray[np.object_]:
        """The examples' entries, which :meth:`numbered` gives row numbers, on the process that writes.

        examples : a batch in a form that :func:`examples_in` takes; or entries.

        Raises RunDataError for what is no batch of examples.
        """
        entries = [one if isinstance(one, Entry) else entry_of(one) for one in examples_in(examples)]
        found = np.empty(len(entries), object)
        for place, entry in enumerate(entries):  # numpy would take the tuples apart
            found[place] = entry if self._text else entry._replace(text="")
        return found

    def numbered(self, entries: Iterable[Entry]) -> IntArray:
        """The row numbers of these examples; those that are new are added.

        Raises RunDataError if an id is that of another example.
        """
        rows = []
        for entry in entries:
            row, *known = self._known.get(entry.id, (len(self), entry.group, entry.hash))
            if known != [entry.group, entry.hash]:
                raise RunDataError(
                    f"two examples of the stream have the id {entry.id!r}, but differ in group or content:"
                    " give each an id of its own, or none (it is then known by its content)"
                )
            if row == len(self):
                self._known[entry.id] = (row, entry.group, entry.hash)
                self._new.append(entry)
            rows.append(row)
        return np.array(rows, np.int64)

    def take_new(self) -> pa.RecordBatch | None:
        """The rows that were added since the last call; None if there are none."""
        taken, self._new = self._new, []
        if not taken:
            return None
        columns = [pa.array(list(column), pa.string()) for column in zip(*taken, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=streams.SCHEMA)

    def restore(self, table: pd.DataFrame) -> None:
        """Become the table of a run that goes on."""
        self._known, self._new = {}, []
        self.numbered(Entry(*row) for row in table[[*Entry._fields]].itertuples(index=False))


def entry_of(example: Any) -> Entry:
    """The entry of one example: a mapping or dataclass, a text, or the ids of its tokens.

    Raises RunDataError for anything else.
    """
    if isinstance(example, str):
        example = {"text": example}
    elif isinstance(example, torch.Tensor | np.ndarray | Sequence) and _is_tokens(example):
        example = {TOKENS: example}
    elif isinstance(example, torch.Tensor | np.ndarray | Sequence):
        raise RunDataError(
            f"an example of a stream is a row, a text, or a list of token ids, got {str(example)[:60]!r}; of"
            " a batch that is a tuple of columns make a mapping: {'x': x, 'y': y}"
        )
    elif isinstance(example, int | float):
        raise RunDataError(
            "the examples of a stream are known by their content: pass the examples themselves (rows, texts"
            f" or token ids), got {example!r}; ids go into a field 'id' of each"
        )
    if isinstance(example, Mapping):
        example = without_padding(example)
        if not as_text(example.get("id")):
            content = {key: value for key, value in example.items() if key != "id"}
            example = {**content, "id": content_hash(content)}
    return Entry(**row_of(example))


def examples_in(batch: Any) -> list[Any]:
    """The examples of a batch, one by one: of a list of them; of a mapping of columns, as data loaders
    collate, an item a row; or of token ids [example, token].

    Raises RunDataError for one example instead of a list, or columns of unequal lengths.
    """
    if isinstance(batch, str):
        raise RunDataError(f"expected a list of examples, got the text {batch[:40]!r}")
    if not isinstance(batch, Mapping):
        if not isinstance(batch, Iterable):
            raise RunDataError(f"expected a list of examples, got {type(batch).__name__}")
        return list(batch)
    columns = {name: column for name, column in batch.items() if column is not None}
    lengths = {name: _length(column) for name, column in columns.items()}
    if None in lengths.values() or len(set(lengths.values())) != 1:
        got = ", ".join(f"{name} ({_length_in_words(size)})" for name, size in lengths.items())
        raise RunDataError(
            "expected a list of examples, or a batch whose columns have a value for each; got a mapping of"
            f" {got or 'nothing'}"
        )
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _is_tokens(example: Any) -> bool:
    if isinstance(example, torch.Tensor):
        return example.ndim == 1 and not (example.is_floating_point() or example.is_complex())
    ids = np.asarray(example, None if isinstance(example, np.ndarray) else object)
    return ids.ndim == 1 and all(isinstance(one, int | np.integer) for one in ids.tolist())


def _length(column: Any) -> int | None:
    is_column = hasattr(column, "__len__") and not isinstance(column, str | Mapping)
    return len(column) if is_column and getattr(column, "ndim", 1) > 0 else None


def _length_in_words(size: int | None) -> str:
    return "one value" if size is None else f"{size} values"


def without_padding(example: Mapping[str, Any]) -> dict[str, Any]:
    """The example without the tokens that its attention mask leaves out, and without the mask."""
    example = dict(example)
    if TOKENS not in example or MASK not in example:
        return example
    kept = np.asarray(example.pop(MASK)).astype(bool)
    return {
        name: np.asarray(value)[kept].tolist() if _length(value) == len(kept) else value
        for name, value in example.items()
    }


def spans_of(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The examples in a packed row, whose field ``seq_lengths`` says how many tokens each has: of every field
    with a value a token its part. Other fields are left out, since they are not of one example.
    """
    ends = np.cumsum([0, *example[SPANS]])
    columns = {
        name: np.asarray(values)
        for name, values in example.items()
        if name not in (SPANS, "position_ids") and _length(values) == ends[-1]
    }
    return [
        {name: values[start:end].tolist() for name, values in columns.items()}
        for start, end in itertools.pairwise(ends)
    ]
