"""Reading JSON Lines: one JSON object a line, UTF-8 (https://jsonlines.org)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simfluence.errors import RunDataError


def read_jsonl(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with where it stands ("<file>, line 3"). Blank lines are skipped.

    Only a newline ends a line: other separators, such as U+2028, may stand within a string.

    Raises RunDataError if the file cannot be read, or naming a line that is not a JSON object.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDataError(f"{file} cannot be read: {error}") from error
    objects = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise RunDataError(f"{where}: expected a JSON object, got {line[:40]!r} ({error})") from error
        if not isinstance(value, dict):
            raise RunDataError(f"{where}: expected a JSON object, got {line[:40]!r}")
        objects.append((where, value))
    return objects
