"""Which group of training examples teaches which group of test examples: a matrix of predicted changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from simfluence.curriculum import Curriculum, remove, repeat
from simfluence.fitted import Fitted
from simfluence.questions.many import chosen_tests, many_changes, with_bands
from simfluence.runs import ExampleTable, Run
from simfluence.runs.schedule import STRETCH
from simfluence.simulators import Simulator

REMOVE, DOUBLE = EDITS = ("remove", "double")
"""What is done with every training group."""


def group_matrix(
    simulator: Simulator | Fitted,
    run: Run,
    *,
    train: ExampleTable,
    test: ExampleTable,
    of: str | None = None,
    edits: Sequence[str] = EDITS,
    schedule: str = STRETCH,
    widened: float = 1.0,
) -> pd.DataFrame:
    """What removing or doubling each group of training examples changes for each group of test examples.

    Parameters
    ----------
    simulator : a fitted one; of a :class:`~simfluence.fitted.Fitted` its bands are taken as well.
    run : the recorded run whose curriculum is edited. train, test : the tables of its examples.
    of : a group of test examples or one test example, by name, or "all"; None is every group and all.
    edits : "remove" leaves all uses of a group out; "double" adds a copy of each, at places drawn by a
        generator with seed 0, so that the run gets longer (``Edit("repeat", times=2)``).
    schedule : what the learning rate does where an edit changes the number of steps (``what_if``).
    widened : how many times as wide as otherwise bands are to be.

    Returns
    -------
    One row an edit, group and set of test examples, with the columns edit; group; uses, how often the run
    used the group; test, the name of the set; change, of its mean final loss, in units of the loss: below
    zero it is learnt better; and where the simulator has bands low, high and verdict. All numbers are those
    of ``what_if``.

        matrix[matrix["edit"] == "remove"].pivot(index="group", columns="test", values="change")

    Groups that the run never used are missing; ``frame.attrs["notes"]`` names them. A group without which
    nothing would be left is doubled, but not removed.

    Raises ValueError for an unknown edit and a run that used no example of any group; RunDataError for other
    test examples than those of the fit.
    """
    if unknown := [edit for edit in edits if edit not in EDITS]:
        raise ValueError(f"edits are {' and '.join(map(repr, EDITS))}, got {unknown[0]!r}")
    fitted = simulator if isinstance(simulator, Fitted) else Fitted(simulator)
    fitted.simulator.check_test_examples(test)
    tests = chosen_tests(test, of)
    groups, unused = used_groups(run, train)
    uses = np.asarray(run.curriculum.counts().sum(0))
    asked: list[tuple[str, str, float]] = []
    curricula: list[Curriculum] = []
    for edit in edits:
        for name, rows in groups.items():
            if edit == REMOVE and uses[rows].sum() == uses.sum():
                continue
            asked.append((edit, name, float(uses[rows].sum())))
            edited = remove(run.curriculum, rows) if edit == REMOVE else repeat(run.curriculum, rows, 2)
            curricula.append(edited)
    if not curricula:
        raise ValueError(f"{run.id} used one group alone: there is nothing to remove and go on")
    changes = many_changes(fitted, run, curricula, schedule=schedule, progress="groups")
    frame = with_bands(fitted, run, changes, tests, train, widened)
    named = pd.DataFrame(asked, columns=["edit", "group", "uses"]).iloc[frame.pop("edit")]
    matrix = pd.concat([named.reset_index(drop=True), frame], axis=1)
    matrix.attrs["notes"] = [f"{run.id} never used the groups {', '.join(unused)}"] if unused else []
    return matrix


def used_groups(run: Run, train: ExampleTable) -> tuple[dict[str, np.ndarray], list[str]]:
    """The groups of training examples that a run used, by name, as rows of the table; and the names of the
    others. Of runs that consume shares of groups each row is a group, and named by its id.

    Raises ValueError if the run used no example.
    """
    names = train.ids if run.curriculum.amounts is not None else train.groups
    labels = np.asarray(names)
    groups = {name: np.flatnonzero(labels == name) for name in sorted(set(names))}
    used = {name: rows for name, rows in groups.items() if np.isin(rows, run.curriculum.examples).any()}
    if not used:
        raise ValueError(f"{run.id} used no training example: there is no group to ask about")
    return used, [name for name in groups if name not in used]
