"""What a search chooses: examples or groups to leave out, the order of groups, how often each group is
repeated, or shares of groups.

A goal says which choices there are, as tuples of numbers, and what edit each is. To add one: a class with
these methods and a line in ``GOALS``.

    start           the choice that a search begins with
    first(choice)   better choices to begin with are looked for among these, until there are none
    joined(best)    one choice of several of ``first``, the best first
    near(choice)    choices that differ a little, among which the local search looks for a better one: at most
                    so many of them, drawn at random where there are more
    edit(choice)    what it is as an edit; None for the run as it is
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np

from simfluence.curriculum import check_counted
from simfluence.edit import Edit, Edits
from simfluence.runs import ExampleTable, Run

Choice: TypeAlias = tuple[int, ...]

EXHAUSTIVE = 720
"""Up to so many orders, all are tried."""
RANDOM_ORDERS = 200
"""Of more orders, so many random ones are tried first."""
GREEDY_ROUNDS = 20
"""Examples to leave out are added one by one; several at a time where they are more than this."""
SHORTLIST = 200
"""After the first round, the best ones of that round, so many or five times k, are tried again."""


class Goal(ABC):
    """See the module; the arguments are those of :func:`simfluence.questions.search.search`."""

    name: ClassVar[str]

    def first(self, choice: Choice) -> list[Choice]:
        return []

    @abstractmethod
    def near(self, choice: Choice, most: int, rng: np.random.Generator) -> list[Choice]:
        """At most so many choices one change away."""

    def joined(self, best: Sequence[Choice], now: Choice) -> Choice:
        return best[0]

    @abstractmethod
    def edit(self, choice: Choice) -> Edit | Edits | None:
        """The edit that a choice means; None where it changes nothing."""

    @property
    @abstractmethod
    def start(self) -> Choice:
        """The choice that the search begins with."""


class ListedGoal(Goal):
    """A goal that lists every choice one change away, of which some are drawn if they are too many."""

    def near(self, choice: Choice, most: int, rng: np.random.Generator) -> list[Choice]:
        found = self.all_near(choice)
        if len(found) <= most:
            return found
        return [found[number] for number in rng.choice(len(found), most, replace=False)]

    @abstractmethod
    def all_near(self, choice: Choice) -> list[Choice]:
        """Every choice one change away."""


@dataclass
class LeaveOut(Goal):
    """k of the examples, or of the groups, that the run uses. A choice: their numbers, ascending."""

    names: list[str]
    k: int
    per: str
    shortlist: list[int] = field(default_factory=list)
    name: ClassVar[str] = "leave_out"

    @property
    def start(self) -> Choice:
        return ()

    def _candidates(self, choice: Choice) -> list[int]:
        out = set(choice)
        return [number for number in self.shortlist or range(len(self.names)) if number not in out]

    def first(self, choice: Choice) -> list[Choice]:
        if len(choice) == self.k:
            return []
        return [tuple(sorted((*choice, number))) for number in self._candidates(choice)]

    def joined(self, best: Sequence[Choice], now: Choice) -> Choice:
        if not now:
            self.shortlist = sorted(number for (number,) in best[: max(SHORTLIST, 5 * self.k)])
        several = min(-(-self.k // GREEDY_ROUNDS), self.k - len(now))
        return tuple(sorted({number for choice in best[:several] for number in choice}))

    def near(self, choice: Choice, most: int, rng: np.random.Generator) -> list[Choice]:
        """One of them put back, and another one left out."""
        others = self._candidates(choice)
        pairs = np.arange(len(choice) * len(others))
        if len(pairs) > most:
            pairs = rng.choice(len(pairs), most, replace=False)
        return [
            tuple(sorted((set(choice) - {choice[pair // len(others)]}) | {others[pair % len(others)]}))
            for pair in pairs.tolist()
        ]

    def edit(self, choice: Choice) -> Edit | None:
        names = [self.names[number] for number in choice]
        if not names:
            return None
        return Edit("remove", groups=names) if self.per == "group" else Edit("remove", ids=names)


@dataclass
class Order(ListedGoal):
    """One group after the other. A choice: the groups' numbers in their order."""

    names: list[str]
    seed: int
    name: ClassVar[str] = "order"

    @property
    def start(self) -> Choice:
        return ()

    def first(self, choice: Choice) -> list[Choice]:
        if choice:
            return []
        if math.factorial(len(self.names)) <= EXHAUSTIVE:
            return list(itertools.permutations(range(len(self.names))))
        rng = np.random.default_rng(self.seed)
        return [tuple(rng.permutation(len(self.names)).tolist()) for _ in range(RANDOM_ORDERS)]

    def all_near(self, choice: Choice) -> list[Choice]:
        found = set()
        for old, new in itertools.permutations(range(len(choice)), 2):
            moved = [*choice[:old], *choice[old + 1 :]]
            found.add((*moved[:new], choice[old], *moved[new:]))
        return sorted(found)

    def edit(self, choice: Choice) -> Edit | None:
        return Edit("order", groups=[self.names[number] for number in choice]) if choice else None


@dataclass
class Repeats(ListedGoal):
    """How often each use of a group occurs, 0 … most. A choice: these counts."""

    names: list[str]
    most: int
    name: ClassVar[str] = "repeats"

    @property
    def start(self) -> Choice:
        return (1,) * len(self.names)

    def all_near(self, choice: Choice) -> list[Choice]:
        """One count more or less, or one more and one less."""
        changed = []
        for more, less in itertools.product(range(-1, len(choice)), repeat=2):
            counts = list(choice)
            if more >= 0:
                counts[more] += 1
            if less >= 0:
                counts[less] -= 1
            if more != less and any(counts) and min(counts) >= 0 and max(counts) <= self.most:
                changed.append(tuple(counts))
        return changed

    def edit(self, choice: Choice) -> Edit | Edits | None:
        out = [name for name, count in zip(self.names, choice, strict=True) if count == 0]
        found = [Edit("remove", groups=out)] if out else []
        for name, count in zip(self.names, choice, strict=True):
            found += [Edit("repeat", groups=[name], times=count)] if count > 1 else []
        return Edits(found) if len(found) > 1 else found[0] if found else None


@dataclass
class Shares(ListedGoal):
    """The share of each group in what every step consumes. A choice: these in percent, which sum to 100."""

    names: list[str]
    before: Choice
    name: ClassVar[str] = "shares"
    moved: ClassVar[tuple[int, ...]] = (20, 10, 5, 2, 1)

    @property
    def start(self) -> Choice:
        return self.before

    def all_near(self, choice: Choice) -> list[Choice]:
        """Some percent of one group given to another."""
        found = set()
        for points, (more, less) in itertools.product(
            self.moved, itertools.permutations(range(len(choice)), 2)
        ):
            if choice[less] >= points:
                shares = list(choice)
                shares[more], shares[less] = shares[more] + points, shares[less] - points
                found.add(tuple(shares))
        return sorted(found)

    def edit(self, choice: Choice) -> Edit | None:
        if choice == self.before:
            return None
        parts = [f"{share}% {name}" for name, share in zip(self.names, choice, strict=True) if share]
        return Edit("shares", shares=", ".join(parts))


GOALS = (LeaveOut.name, Order.name, Repeats.name, Shares.name)


def make_goal(
    name: str, run: Run, train: ExampleTable, *, k: int | None, per: str, most: int, seed: int
) -> Goal:
    """The goal of this name for a run.

    Raises ValueError for another name, or where the run does not have what it chooses among.
    """
    if name not in GOALS:
        raise ValueError(f"a search chooses {', '.join(GOALS)}, not {name!r}")
    used = run.curriculum.used
    if name == Shares.name:
        return _shares(run, train)
    check_counted([run.curriculum], f"a search of {name}")
    groups = sorted({train.groups[row] for row in used} - {""})
    if name == LeaveOut.name:
        if per not in ("example", "group"):
            raise ValueError(f"per must be 'example' or 'group', got {per!r}")
        names = groups if per == "group" else [train.ids[row] for row in used]
        if k is None or isinstance(k, bool) or k != int(k) or not 1 <= k < len(names):
            raise ValueError(
                f"k, how many to leave out, must be 1 … {len(names) - 1}, since {run.id} uses {len(names)}"
                f" {per}s; got {k}"
            )
        return LeaveOut(names, int(k), per)
    if len(groups) < 2:
        raise ValueError(f"{run.id} uses {len(groups)} groups of training examples: {name} needs two")
    if name == Order.name:
        return Order(groups, seed)
    if isinstance(most, bool) or most != int(most) or most < 2:
        raise ValueError(f"most, how often a group may occur at most, must be 2 or more, got {most}")
    return Repeats(groups, int(most))


def _shares(run: Run, train: ExampleTable) -> Shares:
    if run.curriculum.amounts is None:
        raise ValueError(f"{run.id} consumes counted examples: shares are of runs that consume shares")
    consumed = np.asarray(run.curriculum.counts().sum(0)).ravel()
    exact = 100 * consumed / consumed.sum()
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: 100 - whole.sum()]] += 1
    return Shares(train.ids, tuple(whole.tolist()))
