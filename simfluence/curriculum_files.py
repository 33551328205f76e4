"""Curricula in a JSON file: the name of a run → the ids of the training examples of each of its steps.

{"next-1f0c9a2b": [["q-1", "q-7"], ["q-3", "q-1"]]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable
from simfluence.runs.storage import write_atomically


def write_curricula(path: str | Path, curricula: Mapping[str, Curriculum], train: ExampleTable) -> None:
    """Write counted curricula over the table ``train`` of training examples."""
    ids = train.ids
    named = {name: [[ids[row] for row in batch] for batch in one] for name, one in curricula.items()}
    write_atomically(Path(path), json.dumps(named, indent=None).encode())


def read_curricula(path: str | Path, train: ExampleTable) -> dict[str, Curriculum]:
    """The curricula of a file, over the table ``train`` of training examples.

    Raises RunDataError, naming the file and the run, for a file that is none and for unknown ids.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RunDataError(f"the file of curricula {path} cannot be read: {error}") from error
    except ValueError as error:
        raise RunDataError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise RunDataError(f'{path} must map names of runs to curricula, as {{"mine": [["q-1", "q-7"]]}}')
    curricula = {}
    for name, batches in found.items():
        if not isinstance(batches, list) or not all(isinstance(batch, list) for batch in batches):
            raise RunDataError(f"{path}: {name} must be a list of steps, each a list of ids")
        try:
            rows = [train.rows(batch) for batch in batches]
            curricula[name] = Curriculum.from_batches(rows, len(train))
        except ValueError as error:
            raise RunDataError(f"{path}: {name}: {error}") from error
        if not batches:
            raise RunDataError(f"{path}: {name} has no step")
    return curricula
