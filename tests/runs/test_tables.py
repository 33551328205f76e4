"""Tables of examples: ids and groups as people have them, and hashes of whatever an example holds."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable
from simfluence.runs.tables import as_text


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_number_is_one_id_in_every_type(number: int) -> None:
    for same in (number, np.int64(number), float(number), np.float64(number), torch.tensor(number)):
        assert as_text(same) == str(number)


@pytest.mark.parametrize("missing", [None, np.nan, float("nan"), pd.NA, pd.NaT, np.float32("nan"), ""])
def test_what_is_missing_is_empty(missing: Any) -> None:
    assert as_text(missing) == ""
    assert ExampleTable.of([{"id": 0, "group": missing}]).groups == [""]
    with pytest.raises(RunDataError, match="row 1 has none"):
        ExampleTable.of([{"id": 0}, {"id": missing}])


@given(st.lists(st.none() | st.integers(-9, 9), min_size=1))
def test_groups_are_the_same_from_records_and_from_frames(groups: list[int | None]) -> None:
    """pandas turns integers beside blanks into floats; the groups stay as they are, 0 among them."""
    frame = pd.DataFrame({"id": range(len(groups)), "group": groups})
    expected = ["" if group is None else str(group) for group in groups]
    for table in (
        ExampleTable(frame),
        ExampleTable.of(frame),
        ExampleTable.of([{"id": i, "group": group} for i, group in enumerate(groups)]),
    ):
        assert table.groups == expected
        assert table.ids == [str(i) for i in range(len(groups))]


def test_ids_that_are_no_text_or_number() -> None:
    with pytest.raises(RunDataError, match=r"text or a number, got tuple \('d', 1\)"):
        ExampleTable.of([{"id": ("d", 1)}])
    with pytest.raises(RunDataError, match="got list"):
        ExampleTable.numbered(3).rows([[1]])
    big = 2**63 + 5
    table = ExampleTable.of([{"id": big}, {"id": -1}])
    assert table.rows([-1, big, str(big)]).tolist() == [1, 0, 0]
    with pytest.raises(RunDataError, match=r"float, which may differ"):
        table.rows([float(big)])


# ----------------------------------------------------------------------------------------- hashes

CONTENTS = """
import sys
import numpy as np
from simfluence.runs import ExampleTable

class Picture:
    def __init__(self, pixels): self.pixels = pixels
    @property
    def __array_interface__(self): return self.pixels.__array_interface__

class Note:
    def __init__(self, words): self.words = words

def table(pixel=0, word="a"):
    picture = Picture(np.full((2, 2), pixel))
    tags = {"a", "b", "c", "d"}
    return ExampleTable.of(
        [{"id": 0, "tags": tags, "picture": picture, "note": Note([word]), "array": np.arange(3)}]
    )
"""


def test_equal_contents_have_equal_hashes_in_every_process() -> None:
    code = CONTENTS + "print(table().fingerprint)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
    names: dict[str, Any] = {}
    exec(CONTENTS, names)
    table = names["table"]
    assert table() == table()
    assert table() != table(pixel=1)
    assert table() != table(word="b")


def test_fields_that_no_hash_can_be_made_of_are_named() -> None:
    class Node:
        pass

    node = Node()
    node.me = node  # type: ignore[attr-defined]
    loop: list[Any] = []
    loop.append(loop)
    for value in (node, loop, {1: "a", "b": 2}, {(1, 2): 3}):
        with pytest.raises(RunDataError, match=r"example 7: no hash can be made of the field 'odd' \("):
            ExampleTable.of([{"id": 7, "fine": 1, "odd": value}])
