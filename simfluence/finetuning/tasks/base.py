"""Text tasks: what an example is, and how training and test examples are drawn.

Most tasks are to choose the right label, and the loss of an example is −log of that label's probability. The
others are to write a completion, and the loss is that of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from simfluence.errors import RunDataError

Kind = Literal["choice", "classification", "completion"]


@dataclass(frozen=True)
class TextExample:
    """One question with its answer.

    id, group : as in :class:`~simfluence.runs.ExampleTable`.
    inputs : pairs of texts, of which the second may be "". A multiple choice has a pair for each option, a
        classification has one pair.
    label : the number of the right option, or of the class.
    """

    id: str
    group: str
    inputs: tuple[tuple[str, str], ...]
    label: int

    @property
    def text(self) -> str:
        """The texts as a person would read them; of a multiple choice, those of the right option."""
        pair = self.inputs[self.label] if len(self.inputs) > 1 else self.inputs[0]
        return " ".join(text for text in pair if text)

    @property
    def content(self) -> Any:
        """What it asks: examples that are equal in this repeat each other."""
        return self.inputs


class Turn(NamedTuple):
    """A piece of text that someone writes.

    role : of a chat "system", "user", "assistant", …; of plain text "prompt" or "completion".
    is_target : whether the model is to write it.
    """

    role: str
    text: str
    is_target: bool


@dataclass(frozen=True)
class Completion:
    """A text, or a chat, of which a language model is to write some turns.

    id, group : as in :class:`~simfluence.runs.ExampleTable`.
    turns : in their order, at least one of them a target.
    is_chat : whether the tokenizer's chat template puts the turns together; plain texts follow each other as
        they are.
    text : what a person would read. It follows from the turns.
    """

    id: str
    group: str
    turns: tuple[Turn, ...]
    is_chat: bool = False
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.is_chat:
            text = "\n".join(f"{turn.role}: {turn.text}" for turn in self.turns)
        else:
            text = "".join(turn.text for turn in self.turns)
        object.__setattr__(self, "text", text)

    @property
    def content(self) -> Any:
        """What it says: examples that are equal in this repeat each other."""
        return self.turns


def by_turn(example: Completion) -> list[Completion]:
    """One example for each turn that the model is to write: what was written before is given, and what comes
    after is left out.

    The first of example "c" is called "c/turn-1". It is in the group of the example, or in the group "turn 1"
    if that has none. An example with one such turn stays as it is.
    """
    places = [place for place, turn in enumerate(example.turns) if turn.is_target]
    if len(places) == 1:
        return [example]
    return [
        Completion(
            f"{example.id}/turn-{number}",
            example.group or f"turn {number}",
            (*(turn._replace(is_target=False) for turn in example.turns[:place]), example.turns[place]),
            example.is_chat,
        )
        for number, place in enumerate(places, 1)
    ]


Example: TypeAlias = Any
"""A :class:`TextExample` or a :class:`Completion`. All examples of a task are of one type, which is the type
that the task's model takes."""


@dataclass(frozen=True)
class Sourced:
    """An example as a source gives it.

    unit : the name of the unit that the example belongs to; "" if it is alone. Examples of one unit resemble
        each other (twins, mirrored items, questions on one passage), so that all of them are drawn for
        training or all for testing.
    labels : the names of the classes, of class 0 first; () where they have none.
    """

    kind: Kind
    example: Example
    unit: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Training and test examples of one kind.

    kind : "choice" (each option is scored, and the right one should score highest), "classification", or
        "completion" (a language model writes text).
    n_labels : how many classes a classification has; else 0.
    labels : the names of the classes, of class 0 first; () where they have none.
    """

    name: str
    kind: Kind
    train: list[Example] = field(repr=False)
    test: list[Example] = field(repr=False)
    n_labels: int = 0
    labels: tuple[str, ...] = ()


def make_task(
    name: str,
    sourced: Sequence[Sourced],
    n_train: int | None,
    n_test: int | None,
    seed: int,
    held_out: Sequence[Sourced] | None = None,
) -> Task:
    """Draw training and test examples.

    No test example is trained on, nor is an example with the same texts. Examples of one unit are all drawn
    for training or all for testing.

    Parameters
    ----------
    sourced : the examples to draw from.
    n_train, n_test : how many; None: all there are. All test examples there are must be held out.
    seed : of the draw.
    held_out : the examples to draw the test examples from, if not from ``sourced``.

    Raises
    ------
    RunDataError : there are too few examples, or examples of several kinds.
    """
    if n_test is None and held_out is None:
        raise RunDataError(
            f"task {name!r}: n_test=null means all test examples there are, which takes a set of their own"
            " (test_path or test_split); give n_test to draw them from the training examples"
        )
    everyone = [*sourced, *(held_out or [])]
    kinds = {item.kind for item in everyone}
    if len(kinds) != 1:
        raise RunDataError(f"task {name!r}: expected examples of one kind, got {sorted(kinds) or 'none'}")
    kind = kinds.pop()
    rng = np.random.default_rng(seed)
    units = _shuffled_units(sourced, rng)
    test: list[Example] = []
    source_of_test = units if held_out is None else _shuffled_units(held_out, rng)
    while source_of_test and (n_test is None or len(test) < n_test):
        test += source_of_test.pop()
    test = test[:n_test]
    asked = {example.content for example in test}
    train = [example for unit in units for example in unit if example.content not in asked]
    few_test, few_train = n_test or 1, n_train or 1
    if len(test) < few_test or len(train) < few_train:
        apart = f" and {len(held_out)} to test on" if held_out is not None else ""
        raise RunDataError(
            f"task {name!r} has {len(sourced)} examples{apart}, too few for {few_train} training and"
            f" {few_test} test examples that do not repeat each other; ask for fewer"
        )
    labels = next((item.labels for item in everyone if item.labels), ())
    n_labels = 0
    if kind == "classification":
        n_labels = len(labels) or 1 + max(item.example.label for item in everyone)
    return Task(name, kind, train[:n_train], test, n_labels, labels)


def _shuffled_units(sourced: Sequence[Sourced], rng: np.random.Generator) -> list[list[Example]]:
    """The examples of each unit, the units in random order."""
    units: dict[str, list[Example]] = {}
    for item in sourced:
        units.setdefault(item.unit or f"alone:{item.example.id}", []).append(item.example)
    drawn = list(units.values())
    return [drawn[i] for i in rng.permutation(len(units))]
