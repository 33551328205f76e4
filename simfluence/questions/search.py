"""The edit of a run that minimises the predicted loss: found by greedy choice, then by local search.

What is found was chosen for its predicted loss, so errors in its favour helped to choose it, and where the
simulator's bands are wide it may be no better than any other edit. Five searches on three sets were
retrained, each beside ten random choices of equal size (analysis/results/search.md). The four whose verdict
was "sure" beat all ten, and the mean of the ten by 0.96 to 1.42 times as much as predicted; the fifth, whose
verdict was "leaning", was worse than all ten. ``risk`` changed little there, since bands are about as wide
for all edits of one size.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.curriculum import Curriculum
from simfluence.edit import Edit, Edits
from simfluence.errors import RunDataError
from simfluence.fitted import Fitted
from simfluence.questions.goals import Choice, Goal, make_goal
from simfluence.questions.many import chosen_tests, many_changes, with_bands
from simfluence.runs import ExampleTable, Run
from simfluence.runs.storage import write_atomically
from simfluence.simulators import Simulator

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

OBJECTIVES = ("mean", "worst")

KEPT = (
    "Of five such edits that were retrained, the four with the verdict sure were better than random edits of"
    " equal size, by 0.96 to 1.42 times as much as predicted; the one with the verdict leaning was worse."
    " Retrain it: simfluence whatif file=… verify=true"
)
"""What was measured, as the answer says it: analysis/results/search.md."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found; ``print`` shows it.

    edit : the best edit. predicted : its mean changes, a row a set of test examples (the one that was asked
        for first): test, change, and with bands low, high and verdict.
    path : the steps of the search: round, what ("first" or "near"), tried (predictions so far), objective
        (of the best so far) and edit in words.
    """

    edit: Edit | Edits
    predicted: pd.DataFrame
    path: pd.DataFrame

    def __str__(self) -> str:
        table = self.predicted.to_markdown(index=False, floatfmt=".4f")
        return f"best found: {self.edit.sentence}\n\n{table}\n\nnote: {self.caution}"

    @property
    def caution(self) -> str:
        """How far its own prediction is to be trusted."""
        return f"it is the best of {self.path['tried'].iloc[-1]} predictions. {KEPT}"


def search(
    simulator: Simulator | Fitted,
    run: Run,
    *,
    train: ExampleTable,
    test: ExampleTable,
    goal: str = "leave_out",
    k: int | None = None,
    per: str = "example",
    most: int = 4,
    budget: int | None = None,
    of: str | None = None,
    objective: str = "mean",
    risk: float = 0.0,
    rounds: int = 30,
    candidates: int = 2000,
    seed: int = 0,
    state: str | Path | None = None,
    say: Callable[[str], object] | None = None,
) -> SearchResult:
    """Search for the edit of a run that minimises the predicted loss of test examples.

    Edits are compared by what the simulation alone says of them (``many_changes`` without the residual), the
    best one is then answered as ``what_if`` answers it.

    Parameters
    ----------
    simulator : a fitted one. train, test : the tables of the training and the test examples.
    goal : what to choose: "leave_out" (k examples or groups, as ``per`` says), "order" (one group after the
        other), "repeats" (how often each use of a group occurs, 0 … ``most``) or "shares" (of groups, for
        runs on shares).
    budget : the most steps that training may take; None: as many as the run.
    of : a group or an id of test examples; None: all.
    objective : "mean", or "worst": the highest loss of one of the test examples.
    risk : the loss is predicted loss + risk × distance to the upper edge of its band.
    rounds : the most rounds of the local search, each of which looks at up to ``candidates`` changes of the
        best so far, a random part of them where there are more.
    seed : of all that is drawn at random.
    state : a file that the search is written to after every round, and goes on from if it is there.
    say : is called with sentences on how long it takes.

    Raises ValueError for a goal that the run does not have, an unknown option, a risk without bands, and if
    nothing better than the run is found.
    """
    fitted = simulator if isinstance(simulator, Fitted) else Fitted(simulator)
    if risk and fitted.bands is None:
        raise ValueError("risk takes a simulator with bands: fit one with level=0.9")
    asked: dict[str, Any] = {
        "goal": goal,
        "k": k,
        "per": per,
        "most": most,
        "budget": budget,
        "of": of,
        "objective": objective,
    }
    asked |= {"risk": risk, "rounds": rounds, "candidates": candidates, "seed": seed}
    what, rows = check_options(run, train, test, **asked)
    limit = len(run) if budget is None else budget
    recorded = many_changes(fitted, run, [run.curriculum]).original
    value = _Value(fitted, run, train, test, rows, objective, risk, limit, recorded)
    found = _Search(what, value, rounds, candidates, seed, say).begun(state, asked)
    found.go()
    edit = what.edit(found.best)
    if edit is None:
        raise ValueError(f"nothing better than {run.id} as it is was found among {found.tried} predictions")
    changes = many_changes(fitted, run, [edit.apply(run, train, test)])
    sets = {of or "all": rows, **chosen_tests(test)}
    predicted = with_bands(fitted, run, changes, sets, train).drop(columns="edit")
    return SearchResult(edit, predicted, pd.DataFrame(found.path))


def check_options(
    run: Run,
    train: ExampleTable,
    test: ExampleTable,
    *,
    goal: str,
    k: int | None,
    per: str,
    most: int,
    budget: int | None,
    of: str | None,
    objective: str,
    risk: float,
    rounds: int,
    candidates: int,
    seed: int,
) -> tuple[Goal, IntArray]:
    """The goal of a search, and the rows of the test examples whose loss counts.

    Raises ValueError for options that :func:`search` does not take.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be {' or '.join(OBJECTIVES)}, got {objective!r}")
    if not np.isfinite(risk) or risk < 0:
        raise ValueError(f"risk must be 0 or more, got {risk}")
    for name, value in (("budget", budget), ("rounds", rounds), ("candidates", candidates)):
        if value is not None and (isinstance(value, bool) or value != int(value) or value < 1):
            raise ValueError(f"{name} must be a whole number, at least 1, got {value}")
    (rows,) = chosen_tests(test, of or "all").values()
    return make_goal(goal, run, train, k=k, per=per, most=most, seed=seed), rows


@dataclass(frozen=True)
class _Value:
    """The objective of edits: the lower, the better."""

    fitted: Fitted
    run: Run
    train: ExampleTable
    test: ExampleTable
    rows: IntArray
    objective: str
    risk: float
    budget: int
    original: Array

    def __call__(self, edits: Sequence[Edit | Edits | None], progress: str | None = None) -> Array:
        """float [edit]; inf for edits that cannot be made, change nothing, or take too many steps."""
        values = np.full(len(edits), np.inf)
        edited, numbers = [], []
        for number, edit in enumerate(edits):
            curriculum = self.run.curriculum if edit is None else self._applied(edit)
            if curriculum is not None and len(curriculum) <= self.budget:
                edited.append(curriculum)
                numbers.append(number)
        if edited:
            values[numbers] = self._of(edited, progress)
        return values

    def _applied(self, edit: Edit | Edits) -> Curriculum | None:
        try:
            return edit.apply(self.run, self.train, self.test)
        except ValueError:
            return None

    def _of(self, edited: Sequence[Curriculum], progress: str | None) -> Array:
        found = many_changes(self.fitted, self.run, edited, with_residual=False, progress=progress)
        changes = replace(found, original=self.original)
        losses = (self.original + changes.change)[:, self.rows]
        if self.objective == "mean":
            losses, sets = losses.mean(1, keepdims=True), {"": self.rows}
        else:
            sets = {str(row): np.array([row]) for row in self.rows}
        if self.risk:
            bands = with_bands(self.fitted, self.run, changes, sets, self.train)
            widths = (bands["high"] - bands["change"]).to_numpy().reshape(losses.shape)
            losses = losses + self.risk * widths
        worst: Array = losses.max(1)
        return worst


class _Search:
    """A search that can be stopped after every round and go on from its file."""

    def __init__(
        self,
        goal: Goal,
        value: _Value,
        rounds: int,
        candidates: int,
        seed: int,
        say: Callable[[str], object] | None,
    ) -> None:
        self.goal, self.value, self.rounds, self.seed = goal, value, rounds, seed
        self.candidates, self.say = candidates, say or (lambda sentence: None)
        self.file: Path | None = None
        self.best, self.lowest, self.done = goal.start, np.inf, False
        self.path: list[dict[str, Any]] = []

    def begun(self, file: str | Path | None, asked: dict[str, Any]) -> _Search:
        """The search as its file has it, if it is there.

        Raises RunDataError for the file of another search.
        """
        run = self.value.run.fingerprint
        words = json.dumps([asked, run, str(self.value.fitted)])
        self.asked = hashlib.sha256(words.encode()).hexdigest()[:16]
        self.file = None if file is None else Path(file)
        if self.file is None or not self.file.exists():
            return self
        try:
            about = json.loads(self.file.read_text(encoding="utf-8"))
            same = about["asked"] == self.asked
            self.best, self.lowest, self.done = tuple(about["best"]), about["lowest"], about["done"]
            self.path = about["path"]
            if shortlist := about["shortlist"]:
                vars(self.goal)["shortlist"] = shortlist
        except (ValueError, KeyError, TypeError) as error:
            raise RunDataError(f"{file} does not hold a search: {error}; delete it to begin anew") from error
        if not same:
            raise RunDataError(f"{file} is of a search for something else: delete it, or name another output")
        return self

    @property
    def tried(self) -> int:
        return int(self.path[-1]["tried"]) if self.path else 0

    def go(self) -> None:
        """The greedy rounds, then the local search until nothing near is better."""
        if not self.path:
            self._expect()
            self.lowest = float(self.value([self.goal.edit(self.goal.start)])[0])
        while not self.done and (tries := self.goal.first(self.best)):
            values = self.value([self.goal.edit(choice) for choice in tries], self.goal.name)
            order = np.argsort(values, kind="stable")
            if not np.isfinite(values[order[0]]):
                raise ValueError(f"none of {len(tries)} edits can be made within {self.value.budget} steps")
            self.best = self.goal.joined([tries[number] for number in order], self.best)
            self.lowest = float(self.value([self.goal.edit(self.best)])[0])
            self._keep("first", len(tries))
        while not self.done:
            near = self._near()
            values = self.value([self.goal.edit(choice) for choice in near], self.goal.name)
            if len(near) and values.min() < self.lowest - 1e-12:
                self.best, self.lowest = near[int(values.argmin())], float(values.min())
            else:
                self.done = True
            self.done |= sum(step["what"] == "near" for step in self.path) + 1 >= self.rounds
            self._keep("near", len(near))

    def _near(self) -> list[Choice]:
        rng = np.random.default_rng([self.seed, len(self.path)])
        return self.goal.near(self.best, self.candidates, rng)

    def _keep(self, what: str, tried: int) -> None:
        edit = self.goal.edit(self.best)
        step = {
            "round": len(self.path) + 1,
            "what": what,
            "tried": self.tried + tried,
            "objective": self.lowest,
            "edit": "nothing" if edit is None else str(edit),
        }
        self.path.append(step)
        if self.file is not None:
            about = {
                "asked": self.asked,
                "best": list(self.best),
                "lowest": self.lowest,
                "done": self.done,
                "shortlist": vars(self.goal).get("shortlist"),
                "path": self.path,
            }
            write_atomically(self.file, json.dumps(about, indent=1).encode())

    def _expect(self) -> None:
        """Says how long a round takes, as a few predictions took."""
        start, count = self.goal.start, 16
        few = self.goal.first(start)[:count] or self.goal.near(start, count, np.random.default_rng(0))
        edits = [self.goal.edit(choice) for choice in few]
        self.value(edits)  # what is compiled at first use is not measured
        began = time.perf_counter()
        self.value(edits)
        each = (time.perf_counter() - began) / max(len(few), 1)
        most = self.candidates * each
        self.say(
            f"a prediction takes about {each * 1e3:.2g} ms, a round of the local search at most {most:.2g} s;"
            f" there are at most {self.rounds}"
        )
