"""What a group of training examples changes by its place in training: early, in the middle, or late."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from simfluence.curriculum import Curriculum, Examples, check_counted
from simfluence.fitted import Fitted
from simfluence.questions.groups import used_groups
from simfluence.questions.many import chosen_tests, many_changes, with_bands
from simfluence.runs import ExampleTable, Run
from simfluence.simulators import Simulator

PLACES = ("early", "middle", "late")
"""The thirds of a training."""


def when(
    simulator: Simulator | Fitted,
    run: Run,
    *,
    train: ExampleTable,
    test: ExampleTable,
    groups: Sequence[str] | None = None,
    of: str | None = None,
    widened: float = 1.0,
) -> pd.DataFrame:
    """What changes if all uses of a group are moved to the early, the middle or the late third of the
    training.

    Parameters
    ----------
    simulator : a fitted one; of a :class:`~simfluence.fitted.Fitted` its bands are taken as well.
    run : the recorded run whose curriculum is edited. train, test : the tables of its examples.
    groups : names; None is every group that the run used.
    of : a group of test examples or one test example, by name, or "all"; None is every group and all.
    widened : how many times as wide as otherwise bands are to be.

    Returns
    -------
    One row a group, place and set of test examples, with the columns group; uses, how often the run used the
    group; place; test; change, of the mean final loss of the set against the original run (below zero: learnt
    better), as ``what_if`` predicts it; where the simulator has bands low, high and verdict; and
    against_others, the change less the mean of those of the two other places.

    The uses are spread evenly over their third (:func:`moved`).

    Raises ValueError for shares of groups, groups that the run never used, and a run that used one group
    alone; RunDataError for unknown groups, or other test examples than those of the fit.
    """
    fitted = simulator if isinstance(simulator, Fitted) else Fitted(simulator)
    fitted.simulator.check_test_examples(test)
    tests = chosen_tests(test, of)
    units = movable_groups(run, train, groups)
    curricula = [moved(run.curriculum, rows, place) for rows in units.values() for place in PLACES]
    changes = many_changes(fitted, run, curricula, progress="when")
    frame = with_bands(fitted, run, changes, tests, train, widened)
    edit = frame.pop("edit").to_numpy()
    uses = np.asarray(run.curriculum.counts().sum(0))
    names = np.array(list(units), object)
    frame.insert(0, "group", names[edit // len(PLACES)])
    frame.insert(1, "uses", np.array([uses[rows].sum() for rows in units.values()])[edit // len(PLACES)])
    frame.insert(2, "place", np.array(PLACES, object)[edit % len(PLACES)])
    total = frame.groupby(["group", "test"])["change"].transform("sum")
    others = (total - frame["change"]) / (len(PLACES) - 1)
    return frame.assign(against_others=frame["change"] - others)


def moved(curriculum: Curriculum, examples: Examples, place: str) -> Curriculum:
    """A curriculum in which all uses of these examples lie in one third of the training, spread evenly over
    it; they and all others keep their order, and batches their sizes.

    Uses that do not fit into a third reach beyond it: early ones from the start on, late ones up to the end,
    and those of the middle to both sides.

    Raises ValueError for another place, and for shares of groups.
    """
    check_counted([curriculum], "moving examples")
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(PLACES)}, got {place!r}")
    chosen = np.isin(curriculum.examples, examples)
    total, count = len(chosen), int(chosen.sum())
    width = max(total / len(PLACES), count)
    start = (total - width) * PLACES.index(place) / (len(PLACES) - 1)
    at = np.floor(start + (np.arange(count) + 0.5) / max(count, 1) * width + 1e-9).astype(np.int64)
    is_moved = np.zeros(total, bool)
    is_moved[at] = True
    stream = np.empty_like(curriculum.examples)
    stream[is_moved], stream[~is_moved] = curriculum.examples[chosen], curriculum.examples[~chosen]
    return Curriculum(stream, curriculum.offsets, curriculum.n_examples)


def movable_groups(run: Run, train: ExampleTable, groups: Sequence[str] | None) -> dict[str, np.ndarray]:
    """The groups that are moved, by name, as rows of the table.

    Raises ValueError and RunDataError as :func:`when` does.
    """
    check_counted([run.curriculum], "moving examples")
    used = used_groups(run, train)[0]
    for name in groups or ():
        train.in_group(name)  # raises for an unknown group
        if name not in used:
            raise ValueError(f"{run.id} never used the group {name!r}: there is nothing to move")
    if len(used) < 2:
        raise ValueError(f"{run.id} used one group alone, which cannot be moved before or after others")
    return {name: used[name] for name in groups or used}
