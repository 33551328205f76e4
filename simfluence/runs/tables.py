"""The training and the test examples that a set of runs is about.

A table says which examples there are (id, group, a hash of the content, text). Which of them a step consumed
is in the run's curriculum.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from simfluence.curriculum import IntArray
from simfluence.errors import RunDataError
from simfluence.runs.content import content_hash

COLUMNS = ["id", "group", "hash", "text"]
_EXACT_FLOATS = 2**53  # below it, every whole number is a float


def as_text(value: Any) -> str:
    """An id or a group as text: the numbers 3, 3.0 and tensor(3) are "3", a missing value (None, NaN) is "".

    Whole floats lose their ".0" because a column of integers that has a missing value becomes one of floats.

    Raises RunDataError for a float so large that it may have been rounded.
    """
    if isinstance(value, str):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float):
        return _float_as_text(value)
    return str(value)


def _float_as_text(value: float) -> str:
    if value != value:
        return ""
    if abs(value) >= _EXACT_FLOATS and value.is_integer():
        raise RunDataError(
            f"the id or group {value!r} is a float, which may differ from the number it was made of in the"
            " last digits; give numbers as large as this one as int or as text"
        )
    return str(int(value)) if value.is_integer() else str(value)


class ExampleTable:
    """A table of examples, one row for each. Curricula and loss arrays hold row numbers of such a table.

    Parameters
    ----------
    frame : a data frame with the column ``id`` (unique) and, as far as they are known, ``group``, ``hash``
        (of the content) and ``text``. Everything is kept as text: an id 3 is "3", a missing group is "".

    Raises
    ------
    RunDataError : there are no examples, an example has no id, or an id occurs twice.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        if "id" not in frame:
            raise RunDataError(f"examples need a field 'id', got only {list(frame.columns)}")
        if len(frame) == 0:
            raise RunDataError("expected at least one example, got an empty table")
        columns = {
            name: [as_text(value) for value in frame[name]] if name in frame else [""] * len(frame)
            for name in COLUMNS
        }
        self.frame = pd.DataFrame(columns, dtype=str)
        if "" in columns["id"]:
            raise RunDataError(f"every example needs an id, but row {columns['id'].index('')} has none")
        twice = self.frame["id"][self.frame["id"].duplicated()]
        if len(twice):
            raise RunDataError(
                f"example ids must be unique, but {twice.iloc[0]!r} occurs more than once"
                f" ({len(twice)} such rows)"
            )
        self._rows = {example_id: row for row, example_id in enumerate(self.frame["id"])}

    @classmethod
    def of(cls, examples: ExampleTable | pd.DataFrame | Iterable[Any]) -> ExampleTable:
        """The table of any sequence of examples, which are mappings or dataclasses with a field ``id``.

        An example's group is its field ``group``, if it has one. The content hash is made of all other
        fields. Its text is the field ``text``, or else the strings in the other fields, joined by " | "
        (a message {"role": …, "content": …} becomes "role: content").

        Raises RunDataError as the class does, and naming a field that no hash can be made of.
        """
        if isinstance(examples, ExampleTable):
            return examples
        if isinstance(examples, pd.DataFrame):
            examples = examples.to_dict("records")
        return cls(pd.DataFrame([row_of(example) for example in examples]))

    @classmethod
    def numbered(cls, n: int, prefix: str = "") -> ExampleTable:
        """A table of n examples of which nothing is known; their ids are the prefix and 0 .. n - 1."""
        return cls(pd.DataFrame({"id": [f"{prefix}{i}" for i in range(n)]}))

    def __len__(self) -> int:
        return len(self.frame)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExampleTable) and self.fingerprint == other.fingerprint

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ExampleTable({len(self)} examples, {self.frame['group'].nunique()} groups)"

    @property
    def ids(self) -> list[str]:
        return self.frame["id"].tolist()

    @property
    def groups(self) -> list[str]:
        """The group of every example, row by row ("" for none)."""
        return self.frame["group"].tolist()

    def rows(self, ids: Iterable[Any]) -> IntArray:
        """The row numbers of these ids, which may be given as numbers (3 is the id "3").

        Raises RunDataError naming the first id that is not in the table.
        """
        try:
            return np.array([self._rows[as_text(example_id)] for example_id in ids], np.int64)
        except KeyError as missing:
            raise RunDataError(
                f"example id {missing.args[0]!r} is not in the table of {len(self)} examples"
                f" (which begins with {self.ids[:3]})"
            ) from None

    def in_group(self, *groups: str) -> IntArray:
        """The row numbers of all examples of these groups.

        Raises RunDataError naming the groups there are.
        """
        known = sorted(set(self.groups))
        if unknown := [group for group in groups if group not in known]:
            raise RunDataError(f"no example is in group {unknown[0]!r}; the groups are {known}")
        return np.flatnonzero(self.frame["group"].isin(groups))

    def without_text(self) -> ExampleTable:
        """The same examples (and fingerprint) without their texts."""
        return ExampleTable(self.frame.drop(columns="text"))

    @property
    def fingerprint(self) -> str:
        """A hash over ids, groups and contents in their order; texts are covered by their hashes."""
        return identity_hash(self.frame[["id", "group", "hash"]].to_numpy().tolist())


def identity_hash(rows: list[list[str]]) -> str:
    """The fingerprint of a table whose rows have these ids, groups and hashes."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class TableFingerprints:
    """Which examples something was computed from: the fingerprints of a training and a test table.

    "" stands for examples that are not known: plain arrays, or files of earlier versions.
    """

    train: str = ""
    test: str = ""

    @classmethod
    def of(cls, train: ExampleTable, test: ExampleTable) -> TableFingerprints:
        """Those of two tables; "" for one of which only the number of examples is known."""
        return cls(*("" if _is_only_numbered(table) else table.fingerprint for table in (train, test)))

    def check(self, other: TableFingerprints, what: str, whose: str = "the runs") -> None:
        """Raises RunDataError if a table of this (``what``) is known not to be that of the other (``whose``).

        what, whose : a plural noun each, for the message.
        """
        for name, kind in (("train", "training"), ("test", "test")):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours and theirs and ours != theirs:
                raise RunDataError(
                    f"{what} are of other {kind} examples than {whose}: the fingerprint of their table is"
                    f" {ours[:8]}…, expected that of {whose}, {theirs[:8]}…; compute them from the examples"
                    f" of {whose}"
                )


def difference(expected: ExampleTable, found: ExampleTable) -> str:
    """The first difference between two tables, in words; "" if they are equal."""
    if len(expected) != len(found):
        return f"{len(found)} examples instead of {len(expected)}"
    for column, what in (("id", "called"), ("group", "in group"), ("hash", "of other content:")):
        ours, theirs = expected.frame[column], found.frame[column]
        if (rows := np.flatnonzero(ours != theirs)).size:
            row = rows[0]
            which = f"number {row}" if column == "id" else repr(expected.ids[row])
            return f"example {which} is {what} {theirs[row]!r} instead of {ours[row]!r}"
    return ""


def _is_only_numbered(table: ExampleTable) -> bool:
    anonymous = (table.frame[["group", "hash"]] == "").to_numpy().all()
    return bool(anonymous) and table.ids == [str(row) for row in range(len(table))]


def _as_mapping(example: Any) -> Mapping[str, Any]:
    if isinstance(example, Mapping):
        return example
    if dataclasses.is_dataclass(example) and not isinstance(example, type):
        return dataclasses.asdict(example)
    raise RunDataError(
        f"an example must be a mapping or a dataclass with a field 'id', got {type(example).__name__}"
    )


def row_of(example: Any) -> dict[str, str]:
    """The row of an example in its table: ``COLUMNS``, as :meth:`ExampleTable.of` says."""
    example = _as_mapping(example)
    if "id" not in example:
        raise RunDataError(f"an example needs a field 'id', got only {sorted(map(str, example))}")
    content = {key: value for key, value in example.items() if key not in ("id", "group")}
    if "text" in content:
        text = "" if content["text"] is None else str(content["text"])
    else:
        text = " | ".join(dict.fromkeys(_strings(content.values())))
    return {
        "id": as_text(example["id"]),
        "group": as_text(example.get("group")),
        "hash": content_hash(content),
        "text": text,
    }


def _strings(values: Iterable[Any]) -> list[str]:
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, Mapping) and isinstance(value.get("content"), str):
            found.append(f"{value.get('role', '')}: {value['content']}")
        elif isinstance(value, Sequence):
            found.extend(_strings(value))
    return found
