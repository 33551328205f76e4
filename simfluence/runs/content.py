"""A hash of what is in an example: equal contents have equal hashes, in every process and everywhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Set
from typing import Any

from simfluence.errors import RunDataError

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def content_hash(content: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over the fields of an example.

    Tensors and arrays count as lists, sets without an order, images by their pixels, and other objects by
    their type and attributes.

    Raises RunDataError naming the field that holds itself, or an object of which nothing can be seen.
    """
    try:
        canonical = json.dumps(content, sort_keys=True, default=_plain)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has not, or contents without an end
        canonical = json.dumps(
            {str(field): _rewritten(content[field], field) for field in sorted(content, key=str)}
        )
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """What JSON has not as something that it has."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Set):
        return sorted(json.dumps(item, sort_keys=True, default=_plain) for item in value)
    if hasattr(value, "tobytes"):  # an image
        pixels = hashlib.sha256(value.tobytes()).hexdigest()
        return [type(value).__name__, getattr(value, "mode", None), getattr(value, "size", None), pixels]
    described = repr(value)
    if not _ADDRESS.search(described):
        return described
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__"):
        return [name, vars(value)]
    raise TypeError(f"nothing can be seen of a {name}")


def _rewritten(value: Any, field: str, inside: tuple[int, ...] = ()) -> Any:
    """The value in what JSON has, mappings as pairs in a fixed order."""
    if value is None or isinstance(value, str | int | float):
        return value
    if id(value) in inside:
        raise RunDataError(f"field {field!r} of an example holds itself; leave it out")
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        pairs = [
            [_rewritten(key, field, inside), _rewritten(item, field, inside)] for key, item in value.items()
        ]
        return sorted(pairs, key=lambda pair: json.dumps(pair[0]))
    if isinstance(value, list | tuple):
        return [_rewritten(item, field, inside) for item in value]
    try:
        return _rewritten(_plain(value), field, inside)
    except TypeError as error:
        raise RunDataError(
            f"field {field!r} of an example cannot be compared with that of another run's: {error}; leave it"
            " out, or put numbers or text in its place"
        ) from None
