"""Fitted simulators as data: nested dicts, lists, numbers, strings and arrays, and one safetensors file of
them.

Nothing in a file names code to run: a dataclass or simulator is written under its short name, and only those
that are registered here or in ``SIMULATORS`` are made from it again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from simfluence.errors import RunDataError
from simfluence.runs.storage import write_atomically

FORMAT = "simfluence simulator 5"
_EARLIER = tuple(f"simfluence simulator {number}" for number in (1, 2, 3, 4))

Class = TypeVar("Class", bound=type)
SAVED: dict[str, type] = {}
"""Dataclasses that may stand in a file, by name."""


def saved(kind: Class) -> Class:
    """Decorates a dataclass that fitted simulators hold."""
    SAVED[kind.__name__] = kind
    return kind


class Arrays:
    """The arrays of a state, each written once however often it occurs."""

    def __init__(self) -> None:
        self.by_name: dict[str, np.ndarray] = {}
        # by identity; the array is kept, so that no other one gets the same identity
        self._known: dict[int, tuple[str, np.ndarray]] = {}

    def name_of(self, array: np.ndarray) -> str:
        """The name under which the array is written."""
        name, _ = self._known.setdefault(id(array), (f"array-{len(self.by_name)}", array))
        self.by_name.setdefault(name, np.ascontiguousarray(array))
        return name


def encode(value: Any, arrays: Arrays) -> Any:
    """JSON in which arrays are replaced by their names; TypeError for anything else."""
    if isinstance(value, np.ndarray):
        return {"array": arrays.name_of(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"mapping": {key: encode(inner, arrays) for key, inner in value.items()}}
    if isinstance(value, list | tuple):
        return [encode(inner, arrays) for inner in value]
    if dataclasses.is_dataclass(value) and type(value).__name__ in SAVED:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"dataclass": type(value).__name__, "fields": encode(fields, arrays)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of ``encode``; lists stay lists. ValueError for a dataclass with other fields."""
    if isinstance(value, list):
        return [decode(inner, arrays) for inner in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "mapping" in value:
        return {key: decode(inner, arrays) for key, inner in value["mapping"].items()}
    kind, fields = SAVED[value["dataclass"]], decode(value["fields"], arrays)
    if set(fields) != (expected := {field.name for field in dataclasses.fields(kind)}):
        raise ValueError(f"{kind.__name__} has the fields {sorted(expected)}, got {sorted(fields)}")
    return kind(**fields)


def write(path: str | Path, state: Mapping[str, Any]) -> None:
    """One safetensors file, written whole or not at all."""
    arrays = Arrays()
    text = json.dumps(encode(dict(state), arrays))
    write_atomically(Path(path), save(arrays.by_name, {"format": FORMAT, "state": text}))


def read(path: str | Path) -> dict[str, Any]:
    """The state in a file that ``write`` made; RunDataError for anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise RunDataError(f"{path} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") in _EARLIER:
        raise RunDataError(
            f"{path} was written by an earlier version of simfluence ({metadata['format']!r}; this one reads"
            f" {FORMAT!r}); fit the simulator again"
        )
    if metadata.get("format") != FORMAT:
        raise RunDataError(f"{path} does not hold a simulator (expected format {FORMAT!r})")
    try:
        return decode(json.loads(metadata["state"]), arrays)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunDataError(f"{path} does not hold a whole simulator: {error!r}") from error
