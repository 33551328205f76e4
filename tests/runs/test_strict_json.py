"""Settings of runs: types and values survive, and the files are JSON for everyone."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simfluence.errors import RunDataError
from simfluence.runs import RunSet, strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    """Equal values of equal types; NaN is equal to NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@given(st.dictionaries(st.text(), VALUES, max_size=3))
def test_settings_survive(settings: dict[str, Any]) -> None:
    text = strict_json.dumps(settings)
    json.loads(text, parse_constant=refuse)
    assert same(strict_json.loads(text), settings)


class Kind(enum.Enum):
    LINEAR = "linear"


@dataclasses.dataclass
class Schedule:
    kind: Kind
    warmup: Any


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor(2.5), 2.5),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array([np.inf, 1.0]), [math.inf, 1.0]),
        ((1, "a"), [1, "a"]),
        ({"b", "a"}, ["a", "b"]),
        (Schedule(Kind.LINEAR, np.int32(5)), {"kind": "linear", "warmup": 5}),
        (argparse.Namespace(rate=1e-3, deep=argparse.Namespace(n=1)), {"rate": 1e-3, "deep": {"n": 1}}),
        ({0: "first", 1.5: None}, {"0": "first", "1.5": None}),
        (Path("a/b"), str(Path("a/b"))),
        (torch.float32, "torch.float32"),
    ],
)
def test_settings_as_people_have_them(value: Any, expected: Any) -> None:
    assert same(strict_json.loads(strict_json.dumps({"x": {"y": [value]}})), {"x": {"y": [expected]}})


def test_settings_that_json_cannot_say() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = [loop]
    schedule = Schedule(Kind.LINEAR, None)
    schedule.warmup = schedule
    twice = [1]
    assert strict_json.loads(strict_json.dumps({"a": [twice, twice]})) == {"a": [[1], [1]]}
    for settings, message in (
        ({"config": {"deep": [{(1, 2): 3}]}}, r"config.deep\[0\] has the key \(1, 2\)"),
        ({"config": loop}, r"config.again\[0\] contains itself"),
        ({"config": schedule}, "config.warmup contains itself"),
        ({"config": {1: 2, "1": 3}}, "config has two keys that read '1'"),
    ):
        with pytest.raises(RunDataError, match=message):
            strict_json.dumps(settings)


def test_a_run_keeps_its_configuration(tmp_path) -> None:
    runs = RunSet.from_arrays([[[0]]], [np.ones((2, 1))], optimizer={"lr": np.float32(0.5), "clip": math.inf})
    runs.save(tmp_path)
    optimizer = RunSet.load(tmp_path)[0].optimizer
    assert same(dict(optimizer), {"lr": 0.5, "clip": math.inf})
    json.loads((tmp_path / "run-000" / "run.json").read_text(), parse_constant=refuse)
