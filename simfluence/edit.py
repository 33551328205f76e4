"""Edits of a curriculum by name, of training examples that are named by group or id.

The edits themselves are functions on curricula (:mod:`simfluence.curriculum`). To add one: a line in
``EDITS``, and what calls it in :meth:`Edit.apply`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simfluence import curriculum as edits
from simfluence.curriculum import Curriculum, IntArray
from simfluence.runs import ExampleTable, Run
from simfluence.runs.schedule import KEEP, STRETCH, check_rule
from simfluence.runs.tables import as_text

EDITS: dict[str, tuple[str, ...]] = {
    "remove": ("groups", "ids"),
    "keep": ("groups", "ids"),
    "repeat": ("groups", "ids", "times", "seed"),
    "put_before": ("groups", "ids", "before_groups", "before_ids"),
    "shuffle": ("window", "seed"),
    "length": ("steps",),
    "shares": ("shares",),
}
"""The options that each edit takes, beside the schedule."""

_LISTS = ("groups", "ids", "before_groups", "before_ids")
_NUMBERS = ("times", "window", "seed", "steps")


@dataclass(frozen=True)
class Edit:
    """An edit of the curriculum of a run; ``str`` says it in words.

    Parameters
    ----------
    name : "remove", "keep", "repeat", "put_before", "shuffle", "length" or "shares".
    groups, ids : the training examples, by their groups and by their ids: one name or several. A number
        means its text, as in :class:`ExampleTable`.
    before_groups, before_ids : of "put_before": the examples that these are put before.
    times : of "repeat": how often each occurrence is to occur.
    window : of "shuffle": within how many steps in turn; None is the whole curriculum.
    steps : of "length": after how many steps the run is to end; past its own end it goes on with its examples
        from the beginning.
    seed : of the places that "repeat" and "shuffle" draw.
    shares : of "shares", for a run that consumes shares of groups: the mixture that it is to consume, as
        "60% web, 40% code" or "30% code, rest as before" (:mod:`simfluence.curriculum.mixtures`).
    schedule : what the learning rate does where the edit changes the number of steps: "stretch" (recomputed
        for the new length, as training with the same settings would) or "keep" (the original's rates step by
        step; past the original's end the last one goes on).

    Raises ValueError for an unknown edit or schedule, an option that it does not take or that is missing, and
    a number that is not whole.
    """

    name: str
    groups: Sequence[str] = ()
    ids: Sequence[Any] = ()
    before_groups: Sequence[str] = ()
    before_ids: Sequence[Any] = ()
    times: int | None = None
    window: int | None = None
    seed: int = 0
    steps: int | None = None
    shares: str | None = None
    schedule: str = STRETCH

    def __post_init__(self) -> None:
        if self.name not in EDITS:
            close = difflib.get_close_matches(str(self.name), EDITS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no edit is named {self.name!r}; there are {', '.join(EDITS)}{hint}")
        for option in _LISTS:
            object.__setattr__(self, option, _names(getattr(self, option)))
        for option in _NUMBERS:
            object.__setattr__(self, option, _whole(option, getattr(self, option)))
        check_rule(self.schedule)
        takes = (*EDITS[self.name], "schedule")
        for field in dataclasses.fields(self)[1:]:
            if field.name not in takes and getattr(self, field.name) not in ((), field.default):
                raise ValueError(f"the edit {self.name!r} takes no {field.name}; it takes {', '.join(takes)}")
        if "ids" in EDITS[self.name] and not (self.groups or self.ids):
            raise ValueError(f"{self.name}: name the training examples, by groups or by ids")
        if self.name == "put_before" and not (self.before_groups or self.before_ids):
            raise ValueError(
                "put_before: name the training examples that they come before, by before_groups or before_ids"
            )
        if self.name == "repeat" and self.times is None:
            raise ValueError("repeat takes times=, how often each occurrence is to occur")
        if self.name == "length" and self.steps is None:
            raise ValueError("length takes steps=, after how many steps the run is to end")
        if self.name == "shares" and not self.shares:
            raise ValueError("shares takes shares=, a mixture of groups, as '60% web, 40% code'")

    def __str__(self) -> str:
        words = [self.name.split("_")[0], *self.groups, *self.ids]
        if self.name == "put_before":
            words += ["before", *self.before_groups, *self.before_ids]
        words += [self.shares] if self.shares else []
        words += [
            f"{name} {value}" for name in ("times", "window", "steps") if (value := getattr(self, name))
        ]
        words += [f"seed {self.seed}"] if self.seed else []
        words += ["schedule keep"] if self.schedule == KEEP else []
        return " ".join(words)

    def apply(self, original: Run | Curriculum, train: ExampleTable) -> Curriculum:
        """The edited curriculum of a run.

        train : the table of the training examples.

        Raises RunDataError for a group or an id that is not in the table, and ValueError if the edit changes
        nothing, as when the run never used these examples, or if it would leave nothing.
        """
        whose = original.id if isinstance(original, Run) else "the run"
        curriculum = original.curriculum if isinstance(original, Run) else original
        examples = _rows(train, self.groups, self.ids)
        before = _rows(train, self.before_groups, self.before_ids)
        for rows, names, what in (
            (examples, (*self.groups, *self.ids), self.name.split("_")[0]),
            (before, (*self.before_groups, *self.before_ids), "put others before"),
        ):
            if names and not np.isin(rows, curriculum.examples).any():
                raise ValueError(f"{whose} never used {_listed(names)}: there is nothing to {what}")
        rng = np.random.default_rng(self.seed)
        if self.name == "shuffle":
            edited = edits.shuffle(curriculum, rng, window=self.window)
        elif self.name == "repeat":
            edited = edits.repeat(curriculum, examples, self.times or 0, rng=rng)
        elif self.name == "length":
            edited = edits.of_length(curriculum, self.steps or 0)
        elif self.name == "shares":
            edited = edits.set_shares(curriculum, self.shares or "", train.ids)
        elif self.name == "put_before":
            edited = edits.put_before(curriculum, examples, before)
        else:
            edited = (edits.remove if self.name == "remove" else edits.keep)(curriculum, examples)
        if edited == curriculum:
            raise ValueError(f"'{self}' changes nothing in {whose}: every step consumes what it did before")
        return edited

    def unused(self, curriculum: Curriculum, train: ExampleTable) -> list[str]:
        """Those of the groups and ids of which the curriculum uses no example."""
        groups = [(name, train.in_group(name)) for name in (*self.groups, *self.before_groups)]
        ids = [(name, train.rows([name])) for name in (*self.ids, *self.before_ids)]
        return [name for name, rows in groups + ids if not np.isin(rows, curriculum.examples).any()]


def _rows(train: ExampleTable, groups: Sequence[str], ids: Sequence[Any]) -> IntArray:
    return np.union1d(train.in_group(*groups) if groups else [], train.rows(ids)).astype(np.int64)


def _names(given: Any) -> tuple[str, ...]:
    """One name or several, as text."""
    several = [given] if isinstance(given, str) or not isinstance(given, Iterable) else given
    return tuple(as_text(name) for name in several)


def _whole(option: str, value: Any) -> int | None:
    is_number = isinstance(value, int | float | np.integer) and not isinstance(value, bool)
    if value is None or (is_number and value == int(value)):
        return None if value is None else int(value)
    raise ValueError(f"{option} must be a whole number, got {value!r}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
