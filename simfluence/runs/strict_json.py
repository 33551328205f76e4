"""Settings as JSON: what a run's manifest holds of its configuration, optimizer and environment.

| Python | JSON | read back as |
|---|---|---|
| None, bool, int, float, str | the same | the same |
| numbers of numpy and torch | numbers | bool, int or float |
| NaN and infinities | {"$numberDouble": "Infinity"} | float |
| mappings with keys of text or numbers | objects | dict with keys of text |
| lists, tuples, sets, arrays, tensors | arrays | list |
| dataclasses, namespaces | objects of their fields | dict |
| enumerations | their values | these |
| anything else | its text | str |

JSON has no infinities; MongoDB's Extended JSON writes them so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

from simfluence.errors import RunDataError

_FLOAT = "$numberDouble"
_NONFINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def dumps(settings: Mapping[str, Any]) -> str:
    """The settings as strict JSON, indented.

    Raises RunDataError naming the entry that contains itself, or has keys that are no text or that coincide.
    """
    plain = {key: _plain(value, str(key), ()) for key, value in settings.items()}
    return json.dumps(plain, indent=2, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """What was written; ValueError if it is not JSON."""
    return json.loads(text, object_hook=_number_or_object)


def _number_or_object(found: dict[str, Any]) -> Any:
    return _NONFINITE.get(str(found[_FLOAT]), found) if found.keys() == {_FLOAT} else found


def _plain(value: Any, where: str, inside: tuple[int, ...]) -> Any:
    """``inside``: the identities of what the value is in."""
    if id(value) in inside:
        raise RunDataError(f"{where} contains itself, which JSON cannot say; leave it out")
    within = (*inside, id(value))
    if isinstance(value, Enum):
        value = value.value
    elif hasattr(value, "tolist"):  # a number, an array or a tensor
        value = value.tolist()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, argparse.Namespace | types.SimpleNamespace):
        value = vars(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: _name_of(value)}
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _collection(value, where, within)
    return str(value)


def _collection(value: Any, where: str, inside: tuple[int, ...]) -> Any:
    if not isinstance(value, Mapping):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_plain(item, f"{where}[{number}]", inside) for number, item in enumerate(items)]
    found: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str | int | float):
            raise RunDataError(f"{where} has the key {key!r}; keys must be text or numbers")
        if str(key) in found:
            raise RunDataError(f"{where} has two keys that read {str(key)!r}; JSON keeps keys as text")
        found[str(key)] = _plain(item, f"{where}.{key}", inside)
    return found


def _name_of(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
