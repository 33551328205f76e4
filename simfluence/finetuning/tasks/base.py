"""Text tasks: what an example is, and how training and test examples are drawn.

Every task is to choose the right label, and the loss of an example is −log of that label's probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from simfluence.errors import RunDataError

Kind = Literal["choice", "classification"]


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


@dataclass(frozen=True)
class Sourced:
    """An example as a source gives it.

    unit : the name of the unit that the example belongs to; "" if it is alone. Examples of one unit resemble
        each other (twins, mirrored items, questions on one passage), so that all of them are drawn for
        training or all for testing.
    labels : the names of the classes, of class 0 first; () where they have none.
    """

    kind: Kind
    example: TextExample
    unit: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Training and test examples of one kind.

    kind : "choice" (each option is scored, and the right one should score highest) or "classification".
    n_labels : how many classes a classification has; 0 for a choice.
    labels : the names of the classes, of class 0 first; () where they have none.
    """

    name: str
    kind: Kind
    train: list[TextExample] = field(repr=False)
    test: list[TextExample] = field(repr=False)
    n_labels: int = 0
    labels: tuple[str, ...] = ()


def make_task(
    name: str,
    sourced: Sequence[Sourced],
    n_train: int,
    n_test: int,
    seed: int,
    held_out: Sequence[Sourced] | None = None,
) -> Task:
    """Draw training and test examples.

    No test example is trained on, nor is an example with the same texts. Examples of one unit are all drawn
    for training or all for testing.

    Parameters
    ----------
    sourced : the examples to draw from.
    seed : of the draw.
    held_out : the examples to draw the test examples from, if not from ``sourced``.

    Raises
    ------
    RunDataError : there are too few examples, or examples of both kinds.
    """
    everyone = [*sourced, *(held_out or [])]
    kinds = {item.kind for item in everyone}
    if len(kinds) != 1:
        raise RunDataError(f"task {name!r}: expected examples of one kind, got {sorted(kinds) or 'none'}")
    kind = kinds.pop()
    rng = np.random.default_rng(seed)
    units = _shuffled_units(sourced, rng)
    test: list[TextExample] = []
    source_of_test = units if held_out is None else _shuffled_units(held_out, rng)
    while source_of_test and len(test) < n_test:
        test += source_of_test.pop()
    test = test[:n_test]
    asked = {example.inputs for example in test}
    train = [example for unit in units for example in unit if example.inputs not in asked]
    if len(test) < n_test or len(train) < n_train:
        apart = f" and {len(held_out)} to test on" if held_out is not None else ""
        raise RunDataError(
            f"task {name!r} has {len(sourced)} examples{apart}, too few for {n_train} training and"
            f" {n_test} test examples that do not repeat each other; ask for fewer"
        )
    labels = next((item.labels for item in everyone if item.labels), ())
    n_labels = len(labels) or 1 + max(item.example.label for item in everyone)
    return Task(name, kind, train[:n_train], test, 0 if kind == "choice" else n_labels, labels)


def _shuffled_units(sourced: Sequence[Sourced], rng: np.random.Generator) -> list[list[TextExample]]:
    """The examples of each unit, the units in random order."""
    units: dict[str, list[TextExample]] = {}
    for item in sourced:
        units.setdefault(item.unit or f"alone:{item.example.id}", []).append(item.example)
    return [list(units.values())[i] for i in rng.permutation(len(units))]
