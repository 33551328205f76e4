"""Rows of fields, as JSONL files and the hub have them, become examples.

The form of a row is known by its fields; ``id`` and ``group`` may be added to any:

    question | premise | context, choices, label   multiple choice. COPA's ``question`` ("cause",
                                                   "effect") asks about a ``premise``. On the hub
                                                   the choices are choice1, choice2 or sol1, sol2.
    sentence with "_", choices, label              Winogrande; the group pair-K names the twins.
                                                   On the hub: option1, option2, answer.
    premise, hypothesis, label                     RTE and other pairs; on the hub sentence1, sentence2
    question, passage, answer (true, false)        BoolQ
    text, label                                    classification of a single text

A label is the number of the right choice or of the class. A class may have a name instead (:class:`Labels`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks.base import Kind, Sourced, TextExample
from simfluence.runs.tables import as_text

Row = Mapping[str, Any]
Content = tuple[tuple[tuple[str, str], ...], Any, str]  # inputs, label as it is, unit

_COPA = {"cause": "What was the cause?", "effect": "What happened as a result?"}
_ANSWERS = {"true": 1, "1": 1, "yes": 1, "false": 0, "0": 0, "no": 0}


@dataclass(frozen=True)
class Labels:
    """How the labels of a file are read.

    names : the names of the classes, of class 0 first; () where labels are numbers.
    first : the number that the first choice or class has.
    """

    names: tuple[str, ...] = ()
    first: int = 0

    def number(self, label: Any, n_choices: int | None) -> int:
        """The number, counted from 0, that a label stands for. ``n_choices``: of a multiple choice.

        Raises ValueError saying what is wrong with the label.
        """
        names = self.names if n_choices is None else ()
        if label in names:
            return names.index(label)
        number = whole_number(label)
        if number is None:
            among = f" or one of {', '.join(map(repr, names))}" if names else ""
            raise ValueError(f"a label must be a whole number{among}, got {label!r}")
        number -= self.first
        most = len(names) or n_choices
        if number < 0 or (most is not None and number >= most):
            among = f"{most or ''} {'classes' if n_choices is None else 'choices'}".strip()
            hint = "; if labels count from 1, give first_label=1" if number == most else ""
            raise ValueError(f"the label {label!r} is none of the {among}, counted from {self.first}{hint}")
        return number


def whole_number(label: Any) -> int | None:
    """The whole number that a label is or reads as (2, 2.0, "2", true); None if it is none."""
    try:
        number = float(label)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def example_of(row: Row, number: int, labels: Labels | None = None, where: str | None = None) -> Sourced:
    """The example in a row, with its kind and unit.

    Parameters
    ----------
    number : the row's number, which is the example's id if it has none.
    labels : how its label is read; by default a number that counts from 0.
    where : what error messages call the row.

    Raises
    ------
    RunDataError : the row has none of the forms, a field is not text, or the label is none of the labels.
    """
    where = where or f"row {number}"
    try:
        row = _with_choices(row)
        if (form := _form_of(row)) is None:
            raise ValueError(
                f"expected one of the forms {'; '.join(', '.join(sorted(f)) for _, f, _ in _FORMS)};"
                f" got the fields {', '.join(sorted(map(str, row)))}"
            )
        kind, read = form
        inputs, label, unit = read(row)
        chosen = (labels or Labels()).number(label, len(inputs) if kind == "choice" else None)
    except ValueError as error:
        raise RunDataError(f"{where}: {error}") from error
    example_id = as_text(row.get("id", row.get("idx"))) or str(number)
    example = TextExample(example_id, as_text(row.get("group")), inputs, chosen)
    return Sourced(kind, example, unit)


def class_label(row: Row) -> Any:
    """The label in a row of a classification whose classes may have names; None in a row of another form."""
    named = _form_of(_with_choices(row)) in (("classification", _pair), ("classification", _single))
    return row["label"] if named else None


def _form_of(row: Row) -> tuple[Kind, Callable[[Row], Content]] | None:
    return next(((kind, read) for kind, needed, read in _FORMS if needed <= row.keys()), None)


def _with_choices(row: Row) -> Row:
    """The hub's names of fields → those above."""
    for first, second in (("choice1", "choice2"), ("option1", "option2"), ("sol1", "sol2")):
        if first in row and second in row:
            label = row.get("label")
            if label is None and (answer := whole_number(row.get("answer"))) is not None:
                label = answer - 1
            return {**row, "choices": [row[first], row[second]], "label": label}
    if "sentence1" in row and "sentence2" in row:
        return {**row, "premise": row["sentence1"], "hypothesis": row["sentence2"]}
    return row


def _winogrande(row: Row) -> Content:
    before, blank, after = _text(row, "sentence").partition("_")
    if not blank:
        raise ValueError(f'the sentence needs a "_" where the choice goes, got {row["sentence"]!r}')
    inputs = tuple((before + choice, choice + after) for choice in _choices(row))
    return inputs, row["label"], as_text(row.get("group"))


def _choice(row: Row) -> Content:
    question = _text(row, "question") if row.get("question") is not None else ""
    about = "premise" if row.get("premise") is not None else "context"
    context = _text(row, about) if row.get(about) is not None else ""
    prompt = f"{context} {_COPA.get(question, question)}".strip()
    choices = _choices(row)
    unit = ""
    if question in _COPA:  # a mirrored item has the choices of its original
        unit = " | ".join(sorted(choices))
    return tuple((prompt, choice) for choice in choices), row["label"], unit


def _pair(row: Row) -> Content:
    return ((_text(row, "premise"), _text(row, "hypothesis")),), row["label"], ""


def _yes_no(row: Row) -> Content:
    label = _ANSWERS.get(str(row["answer"]).strip().lower())
    if label is None:
        raise ValueError(f"answer must be true or false, got {row['answer']!r}")
    passage = _text(row, "passage")
    return ((_text(row, "question"), passage),), label, passage


def _single(row: Row) -> Content:
    return ((_text(row, "text"), ""),), row["label"], ""


def _text(row: Row, name: str) -> str:
    if not isinstance(row[name], str):
        raise ValueError(f"{name} must be text, got {row[name]!r}")
    return row[name]


def _choices(row: Row) -> list[str]:
    choices = row["choices"]
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        raise ValueError(f"choices must be a list of at least two, got {choices!r}")
    if wrong := [choice for choice in choices if not isinstance(choice, str | int | float)]:
        raise ValueError(f"a choice must be text, got {wrong[0]!r}")
    return [str(choice) for choice in choices]


_FORMS: list[tuple[Kind, set[str], Callable[[Row], Content]]] = [
    ("choice", {"sentence", "choices", "label"}, _winogrande),
    ("choice", {"choices", "label"}, _choice),
    ("classification", {"premise", "hypothesis", "label"}, _pair),
    ("classification", {"question", "passage", "answer"}, _yes_no),
    ("classification", {"text", "label"}, _single),
]
