"""Which training examples, or groups of them, help test examples, and which hurt: all ranked at once.

Every training example (or group) is left out of a run in turn, or used once more, and the change of the final
losses is predicted. Where simulating every edit takes too long, the change is predicted to first order: the
derivative of the simulated final losses by how much a use of the example counts
(:meth:`Simulator.first_order`), moved by what it misses, on average, of a few edits that are simulated.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from simfluence.curriculum import Curriculum, check_counted, remove
from simfluence.fitted import Fitted
from simfluence.questions.many import Changes, banded, chosen_tests, many_changes, rates_by_length
from simfluence.runs import ExampleTable, Run
from simfluence.runs.schedule import STRETCH, recorded_rates
from simfluence.simulators import Simulator

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PER = ("example", "group")
LEAVE_OUT, ADD_ONE = EDITS = ("leave_out", "add_one")
"""What is done with every example or group."""
SIMULATED, FIRST_ORDER = "simulated", "first order"
"""How changes are predicted."""
PATIENCE = 10.0
"""Where simulating every edit would take more seconds, changes are predicted to first order."""
_MEASURED = 16
"""So many edits are simulated to see how long all take, and what changes to first order miss of all alike:
leaving an example out moves later ones up, and the last batch is smaller."""
_AT_ONCE = 512
"""So many edited curricula are in memory at once."""


def rank(
    simulator: Simulator | Fitted,
    run: Run,
    *,
    train: ExampleTable,
    test: ExampleTable,
    per: str = "example",
    what: str = LEAVE_OUT,
    of: str | None = None,
    schedule: str = STRETCH,
    first_order: bool | None = None,
    widened: float = 1.0,
) -> pd.DataFrame:
    """Training examples or groups by how much they help test examples: the most helpful first, the most
    harmful last.

    Parameters
    ----------
    simulator : a fitted one; of a :class:`~simfluence.fitted.Fitted` its bands are taken as well.
    run : the recorded run whose curriculum is edited. train, test : the tables of its examples.
    per : "example" or "group".
    what : "leave_out" predicts what leaving out all uses of an example changes (those that the run never used
        are not ranked); "add_one" what one more use of it changes (:func:`used_once_more`).
    of : a group of test examples or one test example, by name, or "all"; None is every group and all.
    schedule : what the learning rate does where an edit changes the number of steps (``what_if``).
    first_order : whether to predict changes to first order in place of simulating every edit. None: only
        where that would take more than ten seconds, and the simulator has first-order changes.
    widened : how many times as wide as otherwise bands are to be.

    Returns
    -------
    One row a training example (or group) and set of test examples, set by set, with the columns

    id : of the example; not for groups. group : its group. uses : how often the run used it.
    test : the name of the set of test examples.
    change : of the mean final loss of the set, in units of the loss. An example helps if leaving it out
        raises the loss, or if using it once more lowers it.
    low, high, verdict : a band around the change and whether its sign is known, where there are bands.
    method : how the change was predicted.

    ``frame.attrs["notes"]`` says in sentences what was left out.

    Simulated losses are compared with simulated ones. What the simulation misses of the recorded run is not
    carried over as in ``what_if``: of single examples nearly the same is lost, whichever is left out, which
    changes no order but would move all changes to one side. Beside retraining:
    analysis/results/leave_one_out.md.

    Raises ValueError for unknown options, a run that used no training example, first-order changes that the
    simulator does not have, and more uses of shares of groups; RunDataError for other test examples than
    those of the fit.
    """
    check_options(per, what)
    fitted = simulator if isinstance(simulator, Fitted) else Fitted(simulator)
    fitted.simulator.check_test_examples(test)
    tests = chosen_tests(test, of)
    units, notes = ranked_units(run, train, per, what)
    edits = Edits(run.curriculum, list(units.values()), what)
    predicted, method = predicted_changes(fitted, run, edits, schedule, first_order)
    frame = banded(fitted, run, predicted.original, predicted.change, tests, edits.by(), train, widened)
    frame = _described(frame, units, run, train, per).assign(method=method)
    order = frame["change"] if what == ADD_ONE else -frame["change"]
    within = {name: number for number, name in enumerate(tests)}
    frame = frame.iloc[np.lexsort((order, frame["test"].map(within)))].reset_index(drop=True)
    frame.attrs["notes"] = notes
    return frame


def check_options(per: str, what: str) -> None:
    """Raises ValueError for options that :func:`rank` does not know."""
    for option, value, known in (("per", per, PER), ("what", what, EDITS)):
        if value not in known:
            raise ValueError(f"{option} must be {' or '.join(map(repr, known))}, got {value!r}")


def used_once_more(curriculum: Curriculum, rows: npt.ArrayLike) -> tuple[Curriculum, IntArray]:
    """A curriculum in which each of these examples is used once more, and in which steps.

    The additional uses are spread evenly over the training; that of a single example is in its middle. Each
    joins the batch of its step, which is larger by one.

    Raises ValueError for shares of groups.
    """
    check_counted([curriculum], "using examples once more")
    more = np.atleast_1d(np.asarray(rows, np.int64))
    step = ((np.arange(len(more)) + 0.5) / len(more) * len(curriculum)).astype(np.int64)
    stream = np.insert(curriculum.examples, curriculum.offsets[step + 1], more)
    joined = np.searchsorted(step, np.arange(len(curriculum) + 1))
    return Curriculum(stream, curriculum.offsets + joined, curriculum.n_examples), step


@dataclass(frozen=True)
class Edits:
    """Leaving out, or using once more, each of several sets of training examples.

    units : int [unit] of rows, the sets. what : "leave_out" or "add_one".
    """

    curriculum: Curriculum
    units: Sequence[IntArray]
    what: str

    def apply(self, unit: int) -> Curriculum:
        """The edited curriculum of one set."""
        if self.what == LEAVE_OUT:
            return remove(self.curriculum, self.units[unit])
        return used_once_more(self.curriculum, self.units[unit])[0]

    def by(self) -> sparse.csr_array:
        """By how much more or less often each training example is used, sparse [unit, train]."""
        rows, unit = np.concatenate(self.units), np.repeat(np.arange(len(self.units)), self._sizes)
        each = np.ones(len(rows)) if self.what == ADD_ONE else -_uses(self.curriculum)[rows]
        return sparse.csr_array((each, (unit, rows)), shape=(len(self.units), self.curriculum.n_examples))

    def first_order(self, simulator: Simulator, run: Run, rates: Array | None) -> Array | None:
        """The changes of the final losses to first order, float [unit, test]; None where there are none.

        Leaving out takes the other uses of a batch as they are, since later examples move up and fill it.
        What joins a batch of b examples takes from each of them 1/(b + 1) of what it counts.
        """
        curriculum = self.curriculum
        unit = np.repeat(np.arange(len(self.units)), self._sizes)
        own_steps = np.repeat(np.arange(len(curriculum)), curriculum.batch_sizes)
        if self.what == LEAVE_OUT:
            unit_of = np.full(curriculum.n_examples, -1)
            unit_of[np.concatenate(self.units)] = unit
            use = np.flatnonzero(unit_of[curriculum.examples] >= 0)
            steps, examples, unit = (
                own_steps[use],
                curriculum.examples[use],
                unit_of[curriculum.examples[use]],
            )
            weight, batchmates = -np.ones(len(use)), np.empty(0, np.int64)
        else:
            examples = np.concatenate(self.units)
            steps = np.concatenate([used_once_more(curriculum, rows)[1] for rows in self.units])
            sizes = curriculum.batch_sizes[steps]
            weight, batchmates = sizes / (sizes + 1), np.flatnonzero(np.isin(own_steps, steps))
        found = simulator.first_order(
            curriculum,
            run.initial_loss.astype(np.float64),
            np.concatenate([steps, own_steps[batchmates]]),
            np.concatenate([examples, curriculum.examples[batchmates]]),
            rates,
        )
        if found is None:
            return None
        asked, others = found[: len(steps)], found[len(steps) :]
        if self.what == ADD_ONE:
            size = curriculum.batch_sizes[own_steps[batchmates], None]
            means = np.zeros((len(curriculum), found.shape[1]))
            np.add.at(means, own_steps[batchmates], others / size)
            asked = asked - means[steps]
        adding = sparse.csr_array((weight, (unit, np.arange(len(unit)))), (len(self.units), len(unit)))
        return np.asarray(adding @ asked, np.float64)

    @property
    def _sizes(self) -> list[int]:
        return [len(rows) for rows in self.units]


def ranked_units(run: Run, train: ExampleTable, per: str, what: str) -> tuple[dict[str, IntArray], list[str]]:
    """The training examples or groups that are ranked, by name, as rows of the table; and a sentence on those
    that are not, since the run never used them.

    Raises ValueError if there are none.
    """
    names = train.ids if per == "example" else train.groups
    if per == "example":
        units = {name: np.array([row]) for row, name in enumerate(names)}
    else:
        units = {name: train.in_group(name) for name in sorted(set(names))}
    if what == ADD_ONE:
        return units, []
    uses = _uses(run.curriculum)
    used = {name: rows for name, rows in units.items() if uses[rows].any()}
    if not used or (len(used) == 1 and uses[next(iter(used.values()))].sum() == uses.sum()):
        raise ValueError(
            f"{run.id} used {'one' if used else 'no'} training {per}: there is nothing to leave out and go on"
        )
    missing = len(units) - len(used)
    said = f"{run.id} never used {missing} of the {len(units)} training {per}s: they are not ranked"
    return used, [said] if missing else []


def predicted_changes(
    fitted: Fitted, run: Run, edits: Edits, schedule: str, first_order: bool | None
) -> tuple[Changes, str]:
    """The changes of all edits, and how they were predicted: see :func:`rank`."""
    count = len(edits.units)

    def simulated(units: Sequence[int] | IntArray, progress: str | None = None) -> Changes:
        edited = [edits.apply(int(unit)) for unit in units]
        return many_changes(fitted, run, edited, schedule=schedule, with_residual=False, progress=progress)

    simulated([0])  # compiles what is compiled
    some = np.unique(np.linspace(0, count - 1, _MEASURED).round().astype(np.int64))
    begin = time.perf_counter()
    few = simulated(some)
    seconds = (time.perf_counter() - begin) / len(some) * count
    if first_order or (first_order is None and seconds > PATIENCE):
        rates = recorded_rates(run) if rates_by_length(fitted.simulator, run, schedule) else None
        change = edits.first_order(fitted.simulator, run, rates)
        if change is not None:
            return Changes([], few.original, change + (few.change - change[some]).mean(0)), FIRST_ORDER
        if first_order:
            raise ValueError(
                f"the simulator {fitted.simulator.name!r} has no first-order changes: use first_order=False"
            )
    parts = [
        simulated(range(first, min(first + _AT_ONCE, count)), "rank") for first in range(0, count, _AT_ONCE)
    ]
    return Changes([], few.original, np.concatenate([part.change for part in parts])), SIMULATED


def _described(
    frame: pd.DataFrame, units: dict[str, IntArray], run: Run, train: ExampleTable, per: str
) -> pd.DataFrame:
    """The frame with the names of what was edited in place of numbers."""
    uses, edit = _uses(run.curriculum), frame.pop("edit").to_numpy()
    names = np.array(list(units), object)
    groups = names
    if per == "example":
        groups = np.array(train.groups, object)[np.concatenate(list(units.values()))]
    frame.insert(0, "group", groups[edit])
    frame.insert(1, "uses", np.array([uses[rows].sum() for rows in units.values()])[edit])
    if per == "example":
        frame.insert(0, "id", names[edit])
    return frame


def _uses(curriculum: Curriculum) -> Array:
    """How often a curriculum uses every training example, float [train]."""
    return np.asarray(curriculum.counts().sum(0), np.float64)
