"""Equal contents have equal hashes, in every process; what cannot be compared is named."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable
from simfluence.runs.content import content_hash

_CHILD = """
import numpy as np
from simfluence.runs.content import content_hash

class Tokens:
    def __init__(self):
        self.ids, self.kinds = [1, 2], {"b", "a", "c"}

class Pixels:
    mode, size = "L", (2, 2)
    def __init__(self, values):
        self.values = values
    def tobytes(self):
        return bytes(self.values)

print(content_hash({"words": {"one", "two", "three"}, "nested": [frozenset({"x", "y"})], "tokens": Tokens()}),
      content_hash({"image": Pixels([1, 2, 3, 4])}), content_hash({"image": Pixels([1, 2, 3, 5])}),
      content_hash({"keys": {1: 2, "b": 3}}))
"""


def test_sets_images_and_objects_are_the_same_in_every_process():
    said = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        ran = subprocess.run(
            [sys.executable, "-c", _CHILD], env=environment, capture_output=True, text=True, check=True
        )
        said.append(ran.stdout.split())
    assert said[0] == said[1]
    assert len(set(said[0])) == 4


def test_hashes_of_plain_fields_are_what_they_have_always_been():
    """Sets that were recorded earlier are to be opened again."""
    assert content_hash({"text": "a", "label": 1, "x": [0.5, None, True]}) == "dfe829868f30d570"
    array = np.arange(3)
    assert (
        content_hash({"x": array}) == content_hash({"x": torch.arange(3)}) == content_hash({"x": [0, 1, 2]})
    )
    assert content_hash({"f": content_hash}) != content_hash({"f": max})


class Circle:
    def __init__(self):
        self.me = self


class Opaque:
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Circle(), "field 'n' of an example holds itself"),
        ({"deep": [Opaque()]}, "field 'n' of an example cannot be compared.*Opaque"),
    ],
)
def test_fields_that_cannot_be_compared_are_named(value, message):
    with pytest.raises(RunDataError, match=message):
        ExampleTable.of([{"id": 0, "n": value}])


def test_ids_of_all_kinds():
    ids = [("d", 1), 2**63 + 5, -1, "name", np.int64(7), torch.tensor(8)]
    table = ExampleTable.of([{"id": example_id} for example_id in ids])
    assert table.ids == ["('d', 1)", str(2**63 + 5), "-1", "name", "7", "8"]
    assert table.rows([*ids, 7, "8"]).tolist() == [0, 1, 2, 3, 4, 5, 4, 5]
