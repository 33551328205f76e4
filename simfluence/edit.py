"""Edits of a curriculum by name, of training examples that are named by group, id, text or score; one, or
several after each other.

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
from simfluence.selection import by_name, by_score, by_text
from simfluence.sentences import sentence

EXAMPLES = ("groups", "ids", "text", "scores", "of", "above", "below")
"""The options that name training examples."""

EDITS: dict[str, tuple[str, ...]] = {
    "remove": EXAMPLES,
    "keep": EXAMPLES,
    "repeat": (*EXAMPLES, "times", "seed"),
    "put_before": (*EXAMPLES, "before_groups", "before_ids"),
    "order": ("groups",),
    "shuffle": ("window", "seed"),
    "length": ("steps",),
    "sample": (*EXAMPLES, "count", "seed"),
    "shares": ("shares",),
}
"""The options that each edit takes, beside the schedule."""

_NEEDED = {
    "repeat": ("times", "how often each occurrence is to occur"),
    "length": ("steps", "how many steps to train for"),
    "sample": ("count", "how many training examples to keep"),
    "shares": ("shares", "a mixture of groups, as '60% web, 40% code'"),
}
_LISTS = ("groups", "ids", "before_groups", "before_ids")
_NUMBERS = ("times", "window", "seed", "steps", "count")


@dataclass(frozen=True)
class Edit:
    """An edit of the curriculum of a run; ``str`` says it in words.

    Parameters
    ----------
    name : "remove", "keep", "repeat", "put_before", "order", "shuffle", "length", "sample" or "shares".
    groups, ids : the training examples, by their groups and by their ids: one name or several. A number
        means its text, as in :class:`ExampleTable`. Of "order": the groups, in the order in which they are
        to come.
    text : those too whose text matches these words, or this regular expression, in small letters or
        capitals.
    scores, above, below, of : those too whose score in the file ``scores`` lies above and below these, on
        average over the test examples of the group or id ``of`` (None: over all). ``simfluence attribute``
        writes such files; examples with positive scores lower the loss.
    before_groups, before_ids : of "put_before": the examples that these are put before.
    times : of "repeat": how often each occurrence is to occur.
    window : of "shuffle": within how many steps in turn; None is the whole curriculum.
    steps : of "length": how many steps to train for; a longer training begins again from the first step.
    count : of "sample": how many of the named training examples (if none are named, of all) to keep.
    seed : of what "repeat", "shuffle" and "sample" draw.
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
    shares: str | None = None
    schedule: str = STRETCH
    text: str | None = None
    scores: str | None = None
    of: str | None = None
    above: float | None = None
    below: float | None = None
    steps: int | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.name not in EDITS:
            close = difflib.get_close_matches(str(self.name), EDITS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no edit is named {self.name!r}; there are {', '.join(EDITS)}{hint}")
        for option in _LISTS:
            object.__setattr__(self, option, _names(getattr(self, option)))
        for option in ("above", "below"):
            object.__setattr__(self, option, _number(option, getattr(self, option)))
        for option in _NUMBERS:
            object.__setattr__(self, option, _whole(option, getattr(self, option)))
        check_rule(self.schedule)
        takes = (*EDITS[self.name], "schedule")
        for field in dataclasses.fields(self)[1:]:
            if field.name not in takes and getattr(self, field.name) not in ((), field.default):
                raise ValueError(f"the edit {self.name!r} takes no {field.name}; it takes {', '.join(takes)}")
        self._check()

    def _check(self) -> None:
        if (self.above is not None or self.below is not None or self.of) and self.scores is None:
            raise ValueError("above=, below= and of= are about scores: give their file, scores=")
        if self.scores is not None and self.above is None and self.below is None:
            raise ValueError("scores= takes above= or below=, which scores the training examples are to have")
        named = bool(self.groups or self.ids or self.text or self.scores)
        if "ids" in EDITS[self.name] and self.name != "sample" and not named:
            raise ValueError(f"{self.name}: name the training examples, by groups, ids, text or scores")
        if self.name == "put_before" and not (self.before_groups or self.before_ids):
            raise ValueError(
                "put_before: name the training examples that they come before, by before_groups or before_ids"
            )
        if self.name == "order" and (len(self.groups) < 2 or len(set(self.groups)) < len(self.groups)):
            raise ValueError(f"order takes groups=, two or more, each once; got {_listed(self.groups)}")
        option, what = _NEEDED.get(self.name, ("name", ""))
        if getattr(self, option) in (None, ""):
            raise ValueError(f"{self.name} takes {option}=, {what}")

    def __add__(self, other: Edit | Edits) -> Edits:
        return Edits([self]) + other

    def __str__(self) -> str:
        words = [self.name.split("_")[0], *self.groups, *self.ids]
        if self.name == "put_before":
            words += ["before", *self.before_groups, *self.before_ids]
        words += [self.shares] if self.shares else []
        for name in ("text", "scores", "of", "above", "below", "times", "window", "steps", "count"):
            if (value := getattr(self, name)) is not None:
                words.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        words += [f"seed {self.seed}"] if self.seed else []
        words += ["schedule keep"] if self.schedule == KEEP else []
        return " ".join(words)

    @property
    def sentence(self) -> str:
        """What it does, as "leave out all training examples of what and which"."""
        return sentence(self)

    def apply(
        self, original: Run | Curriculum, train: ExampleTable, test: ExampleTable | None = None
    ) -> Curriculum:
        """The edited curriculum of a run.

        train, test : the tables of the training and the test examples; the latter only for ``of``.

        Raises RunDataError for a group or an id that is not in the table, and ValueError if the edit changes
        nothing, as when the run never used these examples, or if it would leave nothing.
        """
        whose = original.id if isinstance(original, Run) else "the run"
        curriculum = original.curriculum if isinstance(original, Run) else original
        examples = self.rows(train, test)
        before = by_name(train, self.before_groups, self.before_ids)
        for rows, names, what in (
            (examples, self._names, self.name.split("_")[0]),
            (before, (*self.before_groups, *self.before_ids), "put others before"),
        ):
            if names and not np.isin(rows, curriculum.examples).any():
                raise ValueError(f"{whose} never used {_listed(names)}: there is nothing to {what}")
        edited = self._edited(curriculum, examples, before, train)
        if edited == curriculum:
            raise ValueError(f"'{self}' changes nothing in {whose}: every step consumes what it did before")
        return edited

    def _edited(
        self, curriculum: Curriculum, examples: IntArray, before: IntArray, train: ExampleTable
    ) -> Curriculum:
        rng = np.random.default_rng(self.seed)
        if self.name == "shuffle":
            edited = edits.shuffle(curriculum, rng, window=self.window)
        elif self.name == "repeat":
            edited = edits.repeat(curriculum, examples, self.times or 0, rng=rng)
        elif self.name == "shares":
            edited = edits.set_shares(curriculum, self.shares or "", train.ids)
        elif self.name == "put_before":
            edited = edits.put_before(curriculum, examples, before)
        elif self.name == "order":
            edited = edits.in_order(curriculum, [train.in_group(group) for group in self.groups])
        elif self.name == "length":
            edited = edits.with_length(curriculum, self.steps or 0)
        elif self.name == "sample":
            edited = edits.sample(curriculum, self.count or 0, rng, examples if self._names else None)
        else:
            edited = (edits.remove if self.name == "remove" else edits.keep)(curriculum, examples)
        return edited

    @property
    def _names(self) -> tuple[str, ...]:
        """What names the training examples, as it is shown in errors."""
        others = [f"{name} {value}" for name in ("text", "scores") if (value := getattr(self, name))]
        return (*self.groups, *self.ids, *others)

    def rows(self, train: ExampleTable, test: ExampleTable | None = None) -> IntArray:
        """The rows of the training examples that the edit is about, ascending."""
        rows = by_name(train, self.groups, self.ids)
        if self.text is not None:
            rows = np.union1d(rows, by_text(train, self.text))
        if self.scores is not None:
            scored = by_score(self.scores, train, test, self.of, self.above, self.below)
            rows = np.union1d(rows, scored)
        return rows

    def unused(self, curriculum: Curriculum, train: ExampleTable) -> list[str]:
        """Those of the groups and ids of which the curriculum uses no example."""
        groups = [(name, train.in_group(name)) for name in (*self.groups, *self.before_groups)]
        ids = [(name, train.rows([name])) for name in (*self.ids, *self.before_ids)]
        return [name for name, rows in groups + ids if not np.isin(rows, curriculum.examples).any()]


@dataclass(frozen=True)
class Edits:
    """Edits that are applied one after the other, as ``Edit(...) + Edit(...)``; each is of what the one
    before it has left.

    Raises ValueError if there are none, or if they have several schedules.
    """

    edits: Sequence[Edit]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        if not self.edits:
            raise ValueError("Edits takes at least one edit")
        if len({edit.schedule for edit in self.edits}) > 1:
            raise ValueError("the edits of one question have one schedule: give all of them the same")

    def __add__(self, other: Edit | Edits) -> Edits:
        return Edits([*self.edits, *(other.edits if isinstance(other, Edits) else [other])])

    def __str__(self) -> str:
        return ", then ".join(map(str, self.edits))

    @property
    def schedule(self) -> str:
        return self.edits[0].schedule

    @property
    def sentence(self) -> str:
        return "; then ".join(edit.sentence for edit in self.edits)

    def apply(
        self, original: Run | Curriculum, train: ExampleTable, test: ExampleTable | None = None
    ) -> Curriculum:
        """The edited curriculum of a run, as :meth:`Edit.apply`.

        Raises also ValueError for an edit of examples that earlier ones have left nothing of.
        """
        first = original.curriculum if isinstance(original, Run) else original
        edited: Run | Curriculum = original
        for number, edit in enumerate(self.edits):
            before = str(Edits(self.edits[:number])) if number else ""
            if isinstance(edited, Curriculum) and before:
                there = set(edit.unused(first, train))
                if gone := [name for name in edit.unused(edited, train) if name not in there]:
                    raise ValueError(
                        f"'{edit}' contradicts '{before}', which leaves nothing of {_listed(gone)}"
                    )
            try:
                edited = edit.apply(edited, train, test)
            except ValueError as error:
                if not before:
                    raise
                raise ValueError(f"after '{before}': {error}") from None
        assert isinstance(edited, Curriculum)
        if edited == first:
            raise ValueError(f"'{self}' changes nothing: the edits undo each other")
        return edited

    def unused(self, curriculum: Curriculum, train: ExampleTable) -> list[str]:
        """Those of the groups and ids of which the curriculum uses no example."""
        return list(dict.fromkeys(name for edit in self.edits for name in edit.unused(curriculum, train)))


def _names(given: Any) -> tuple[str, ...]:
    """One name or several, as text."""
    several = [given] if isinstance(given, str) or not isinstance(given, Iterable) else given
    return tuple(as_text(name) for name in several)


def _whole(option: str, value: Any) -> int | None:
    is_number = isinstance(value, int | float | np.integer) and not isinstance(value, bool)
    if value is None or (is_number and value == int(value)):
        return None if value is None else int(value)
    raise ValueError(f"{option} must be a whole number, got {value!r}")


def _number(option: str, value: Any) -> float | None:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if value is None or (is_number and np.isfinite(value)):
        return None if value is None else float(value)
    raise ValueError(f"{option} must be a number, got {value!r}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
