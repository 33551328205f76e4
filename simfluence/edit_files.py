"""Named edits in a YAML file, to be asked together and handed on.

    without which:                       # a name, and one edit …
      {name: remove, groups: [which]}
    easy first:                          # … or several, which are applied one after the other
      - {name: remove, groups: [which]}
      - {name: order, groups: [easy, hard]}

An edit has the fields of :class:`simfluence.edit.Edit`. Every value is read as the text that stands there and
only then as the number that a field expects, so that the id 007 and the group "no" stay what they are.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from simfluence.edit import Edit, Edits
from simfluence.errors import RunDataError
from simfluence.runs.storage import write_atomically

_FIELDS = {field.name: field for field in dataclasses.fields(Edit)}
_WHOLE, _REAL = ("times", "window", "seed", "steps", "count"), ("above", "below")
_SEVERAL = ("groups", "ids", "before_groups", "before_ids")


def read_edits(path: str | Path) -> dict[str, Edit | Edits]:
    """The edits of a file by their names, in the file's order.

    Raises RunDataError, naming the file and the edit, if there is no such file, it is no YAML of this form,
    a name or a field occurs twice, or an edit is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDataError(f"the file of edits {path} cannot be read: {error}") from error
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise RunDataError(f"{path} has YAML aliases (*name), which files of edits do not: write it out")
        found = _plain(yaml.compose(text, yaml.SafeLoader), str(path))
    except yaml.YAMLError as error:
        raise RunDataError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not found:
        raise RunDataError(
            f"{path} must map names to edits, as 'without which: {{name: remove, groups: [which]}}'"
        )
    return {name: _edit(value, f"{path}: {name}") for name, value in found.items()}


def write_edits(path: str | Path, edits: Mapping[str, Edit | Edits]) -> None:
    """Write the file that :func:`read_edits` reads."""
    plain = {
        name: [_fields(each) for each in edit.edits] if isinstance(edit, Edits) else _fields(edit)
        for name, edit in edits.items()
    }
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    write_atomically(Path(path), text.encode())


def _fields(edit: Edit) -> dict[str, Any]:
    """What an edit says, without defaults."""
    values = {name: getattr(edit, name) for name in _FIELDS}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name == "name" or value not in ((), _FIELDS[name].default)
    }


def _edit(given: Any, where: str) -> Edit | Edits:
    if isinstance(given, list) and given:
        try:
            return Edits([_one(each, f"{where}, edit {number}") for number, each in enumerate(given, 1)])
        except ValueError as error:
            raise error if isinstance(error, RunDataError) else RunDataError(f"{where}: {error}") from error
    return _one(given, where)


def _one(given: Any, where: str) -> Edit:
    if not isinstance(given, dict):
        raise RunDataError(
            f"{where} must be an edit, as {{name: remove, groups: [which]}}, or a list of them"
        )
    if unknown := [field for field in given if field not in _FIELDS]:
        close = difflib.get_close_matches(unknown[0], _FIELDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(_FIELDS)}"
        raise RunDataError(f"{where}: an edit has no field {unknown[0]!r}{hint}")
    if "name" not in given:
        raise RunDataError(f"{where}: the edit has no name, as remove or order")
    try:
        return Edit(**{field: _value(field, value) for field, value in given.items()})
    except ValueError as error:
        raise RunDataError(f"{where}: {error}") from error


def _value(field: str, value: Any) -> Any:
    """What stands in the file as what the field expects."""
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in several) or (field not in _SEVERAL and several is value):
        raise ValueError(f"{field} must be {'a list of texts' if field in _SEVERAL else 'one value'}")
    if field in _SEVERAL:
        return several
    if value in ("null", "~", "") and field != "name":
        return _FIELDS[field].default
    try:
        return int(value) if field in _WHOLE else float(value) if field in _REAL else value
    except ValueError:
        raise ValueError(
            f"{field} must be a {'whole ' if field in _WHOLE else ''}number, got {value!r}"
        ) from None


def _plain(node: yaml.Node | None, path: str) -> Any:
    """A YAML document of texts, lists and mappings; RunDataError for a key that occurs twice."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return None if node is None else node.value
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in found:
            raise RunDataError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} must be a name, once")
        found[key.value] = _plain(value, path)
    return found
