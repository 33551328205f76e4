"""Examples that were not there when a run was recorded, in the form of its task: of a file, or typed in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks import Example, Task, load_task
from simfluence.finetuning.tasks.base import Sourced
from simfluence.finetuning.tasks.fields import Labels, example_of
from simfluence.finetuning.tasks.instructions import completion_of, from_instructions
from simfluence.finetuning.tasks.sources import from_jsonl


def read_examples(path: str | Path, options: Mapping[str, Any]) -> list[Example]:
    """The examples of a file. options : of the run's task, as its configuration has them.

    Raises RunDataError if the file cannot be read, or its rows are not of the task's form.
    """
    task = load_task(**options)
    if task.kind == "completion":
        return _checked(from_instructions(path, group=_group(options), needs_group=False), task)
    return _checked(from_jsonl(path, task.labels or None, options.get("first_label")), task)


def typed_example(row: Mapping[str, Any], options: Mapping[str, Any]) -> list[Example]:
    """The one example whose fields were typed in, with the id "typed". options : as in :func:`read_examples`.

    Raises RunDataError if the fields are not those of the task's form.
    """
    task, row = load_task(**options), {"id": "typed", **row}
    labels = Labels(task.labels, options.get("first_label") or 0)
    where = "the example that was typed in"
    if task.kind == "completion":
        return _checked([completion_of(row, 0, _group(options), where)], task)
    return _checked([example_of(row, 0, labels, where)], task)


def _group(options: Mapping[str, Any]) -> str:
    return options.get("group") or "group"


def _checked(found: list[Sourced], task: Task) -> list[Example]:
    """The examples; RunDataError unless they are of the task's kind, with labels that it has."""
    for sourced in found:
        if sourced.kind != task.kind:
            raise RunDataError(
                f"the run's task {task.name} is of the kind {task.kind}: example {sourced.example.id!r} is a"
                f" {sourced.kind}"
            )
        if task.n_labels and sourced.example.label >= task.n_labels:
            raise RunDataError(
                f"the label {sourced.example.label} of example {sourced.example.id!r} is none of the"
                f" {task.n_labels} classes of the run's task, counted from 0"
            )
    return [sourced.example for sourced in found]
