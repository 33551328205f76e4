"""Text tasks whose loss is that of choosing the right label: what an example is, and how sets are split."""

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

    id, group : as in example tables.
    inputs : pairs of texts (second may be ""). For a choice, one pair an option; for a
        classification, a single pair.
    label : the right option, or the class.
    """

    id: str
    group: str
    inputs: tuple[tuple[str, str], ...]
    label: int

    @property
    def text(self) -> str:
        """What a person would read: the texts; of a choice, those of the right option."""
        pair = self.inputs[self.label] if len(self.inputs) > 1 else self.inputs[0]
        return " ".join(text for text in pair if text)


@dataclass(frozen=True)
class Sourced:
    """An example as a source gives it.

    unit : examples of one unit (twins, mirrored items) never stand on both sides of a split;
        "" for an example by itself.
    """

    kind: Kind
    example: TextExample
    unit: str = ""


@dataclass(frozen=True)
class Task:
    """Training and test examples of one kind.

    kind : "choice" (each option is scored, the right one should win) or "classification".
    n_labels : classes of a classification; 0 for a choice.
    """

    name: str
    kind: Kind
    train: list[TextExample] = field(repr=False)
    test: list[TextExample] = field(repr=False)
    n_labels: int = 0


def make_task(name: str, sourced: Sequence[Sourced], n_train: int, n_test: int, seed: int) -> Task:
    """Draw disjoint training and test examples, units kept together.

    Raises RunDataError if there are too few examples, or examples of both kinds.
    """
    kinds = {item.kind for item in sourced}
    if len(kinds) != 1:
        raise RunDataError(f"task {name!r}: expected examples of one kind, got {sorted(kinds) or 'none'}")
    kind = kinds.pop()
    units: dict[str, list[TextExample]] = {}
    for item in sourced:
        units.setdefault(item.unit or f"alone:{item.example.id}", []).append(item.example)
    order = np.random.default_rng(seed).permutation(len(units))
    shuffled = [list(units.values())[i] for i in order]
    test: list[TextExample] = []
    while shuffled and len(test) < n_test:
        test += shuffled.pop()
    train = [example for unit in shuffled for example in unit]
    if len(test) < n_test or len(train) < n_train:
        raise RunDataError(
            f"task {name!r} has {len(sourced)} examples, too few for {n_train} training and"
            f" {n_test} test examples; ask for fewer"
        )
    n_labels = 1 + max(item.example.label for item in sourced) if kind == "classification" else 0
    return Task(name, kind, train[:n_train], test[:n_test], n_labels)
