"""Rows of fields, as JSONL files and the hub have them, → examples.

A row's form is known by its fields (``id`` and ``group`` are optional everywhere; ``label`` is the
number of the right option or class):

    question | premise | context, choices, label   multiple choice; COPA's ``question`` ("cause",
                                                   "effect") after a ``premise``; hub names choice1, …
    sentence with "_", choices, label              Winogrande; ``group`` pair-K names the twins;
                                                   hub names option1, option2, answer
    premise, hypothesis, label                     RTE and other pairs; hub names sentence1, sentence2
    question, passage, answer (true, false)        BoolQ
    text, label                                    any single text
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks.base import Kind, Sourced, TextExample

Row = Mapping[str, Any]
Content = tuple[tuple[tuple[str, str], ...], int, str]  # inputs, label, unit

_COPA = {"cause": "What was the cause?", "effect": "What happened as a result?"}


def example_of(row: Row, number: int) -> Sourced:
    """The example in a row, with its kind and unit. Raises RunDataError naming the forms there are."""
    row = _with_choices(row)
    for kind, needed, read in _FORMS:
        if needed <= row.keys():
            example_id = str(row.get("id", row.get("idx", number)))
            inputs, label, unit = read(row)
            return Sourced(kind, TextExample(example_id, str(row.get("group", "")), inputs, label), unit)
    raise RunDataError(
        f"row {number} has the fields {sorted(row)}; expected one of the forms"
        f" {', '.join(str(sorted(needed)) for _, needed, _ in _FORMS)}"
    )


def _with_choices(row: Row) -> Row:
    """Hub spellings → choices and label."""
    for first, second in (("choice1", "choice2"), ("option1", "option2"), ("sol1", "sol2")):
        if first in row:
            label = row["label"] if "label" in row else int(row["answer"]) - 1
            return {**row, "choices": [row[first], row[second]], "label": label}
    if "sentence1" in row:
        return {**row, "premise": row["sentence1"], "hypothesis": row["sentence2"]}
    return row


def _winogrande(row: Row) -> Content:
    before, _, after = str(row["sentence"]).partition("_")
    inputs = tuple((before + choice, choice + after) for choice in row["choices"])
    return inputs, int(row["label"]), str(row.get("group", ""))


def _choice(row: Row) -> Content:
    question = str(row.get("question", ""))
    context = str(row.get("premise", row.get("context", "")))
    prompt = f"{context} {_COPA.get(question, question)}".strip()
    unit = ""
    if question in _COPA:  # a mirrored item has the choices of its original
        unit = " | ".join(sorted(row["choices"]))
    return tuple((prompt, choice) for choice in row["choices"]), int(row["label"]), unit


def _pair(row: Row) -> Content:
    return ((row["premise"], row["hypothesis"]),), int(row["label"]), ""


def _yes_no(row: Row) -> Content:
    label = int(str(row["answer"]).lower() in ("true", "1", "yes"))
    return ((row["question"], row["passage"]),), label, str(row["passage"])


def _single(row: Row) -> Content:
    return ((row["text"], ""),), int(row["label"]), ""


_FORMS: list[tuple[Kind, set[str], Callable[[Row], Content]]] = [
    ("choice", {"sentence", "choices", "label"}, _winogrande),
    ("choice", {"choices", "label"}, _choice),
    ("classification", {"premise", "hypothesis", "label"}, _pair),
    ("classification", {"question", "passage", "answer"}, _yes_no),
    ("classification", {"text", "label"}, _single),
]
