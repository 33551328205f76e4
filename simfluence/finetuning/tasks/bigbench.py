"""Tasks of the package bigbench 1.0.0, whose files are read without importing the package.

Installed, the package takes 1.8 GB (``pip install --no-deps bigbench==1.0.0``, four minutes). Its source
archive is enough (``pip download --no-deps --no-binary :all: bigbench==1.0.0``, 358 MB, half a minute): give
its path as the option ``archive`` once. The files that were read stay in the user's cache folder.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from simfluence.errors import RunDataError
from simfluence.finetuning.cache import cache_folder, write_whole
from simfluence.finetuning.tasks.base import Sourced, TextExample

BIGBENCH = {
    "vitaminc": "bigbench/benchmark_tasks/vitaminc_fact_verification/task.json",
    "step_ordering": "bigbench/benchmark_tasks/goal_step_wikihow/step_ordering/task.json",
}
"""The files, by the name of the task."""

VERDICTS = ("False", "Neither", "True")


def from_bigbench(name: str, archive: str | None = None) -> list[Sourced]:
    """A task of :data:`BIGBENCH`.

    VitaminC is a classification: whether a passage supports a claim. Groups and units are Wikipedia pages,
    since the claims on a page contrast passages that differ in a word.

    Step ordering is a choice: which of two steps towards a goal comes first. Units are goals, since the steps
    of a goal stand in several examples; groups are the first words of the goals.
    """
    if name not in BIGBENCH:
        raise RunDataError(f"bigbench has no task {name!r} that we know; there are {', '.join(BIGBENCH)}")
    file = bigbench_file(BIGBENCH[name], archive)
    examples = json.loads(file.read_text(encoding="utf-8"))["examples"]
    return list(_vitaminc(examples) if name == "vitaminc" else _step_ordering(examples))


def bigbench_file(path: str, archive: str | None = None) -> Path:
    """A file of bigbench: from the cache folder, the installed package, or the source archive.

    ``path`` is the file's path in the source tree. Files outside of its folder bigbench/ are in the archive
    only. Raises RunDataError, saying how to get the package, if the file is in none of these places.
    """
    kept = cache_folder() / "bigbench-1.0.0" / path
    if kept.is_file():
        return kept
    spec = find_spec("bigbench")
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent.parent / path
        if installed.is_file():
            return installed
    if archive is None:
        raise RunDataError(
            "this comes in the package bigbench: `pip download --no-deps --no-binary :all: bigbench==1.0.0`"
            " (358 MB) and give the option archive=bigbench-1.0.0.tar.gz, once"
        )
    if not Path(archive).is_file():
        raise RunDataError(f"there is no file {archive}")
    with tarfile.open(archive) as members:
        for member in members:
            if member.name == f"bigbench-1.0.0/{path}":
                content = members.extractfile(member)
                assert content is not None  # a regular file
                return write_whole(kept, content.read())
    raise RunDataError(f"{archive} has no {path}; is it bigbench-1.0.0.tar.gz?")


def _vitaminc(examples: list[dict]) -> Iterator[Sourced]:
    for number, example in enumerate(examples):
        passage, _, claim = example["input"].partition("\nClaim: ")
        page = passage.partition(": ")[0]
        label = VERDICTS.index(_answer(example))
        found = TextExample(f"vitaminc-{number}", page, ((passage, claim),), label)
        yield Sourced("classification", found, unit=page)


def _step_ordering(examples: list[dict]) -> Iterator[Sourced]:
    for number, example in enumerate(examples):
        question = example["input"].strip()
        goal = re.match(r"In order to '(.*?)', one can '", question)
        unit = goal[1] if goal else question
        choices = list(example["target_scores"])
        inputs = tuple((question, choice) for choice in choices)
        group = unit.split()[0].lower()
        found = TextExample(f"step_ordering-{number}", group, inputs, choices.index(_answer(example)))
        yield Sourced("choice", found, unit=unit)


def _answer(example: dict) -> str:
    return max(example["target_scores"], key=example["target_scores"].__getitem__)
