"""Several named edits of one run, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from simfluence.answer import WhatIf
from simfluence.edit import Edit, Edits
from simfluence.errors import RunDataError
from simfluence.fitted import Fitted
from simfluence.runs import Run, RunSet
from simfluence.whatif import Retrain, what_if

RetrainEdit = Callable[[Edit | Edits], Retrain]
"""From an edit to what trains a run again under it, as ``what_if`` takes it."""


def check_edits(runs: RunSet, run: Run, edits: Mapping[str, Edit | Edits], where: str) -> None:
    """Raises RunDataError that names the file ``where`` and the edit, for one that cannot be applied to the
    run or changes nothing of it.
    """
    for name, edit in edits.items():
        try:
            edit.apply(run, runs.train, runs.test)
        except ValueError as error:
            raise RunDataError(f"{where}: {name}: {error}") from error


def compare(
    runs: RunSet,
    fitted: Fitted,
    run: Run,
    edits: Mapping[str, Edit | Edits],
    *,
    level: float | None = 0.9,
    widened: float = 1.0,
    retrain: RetrainEdit | None = None,
) -> dict[str, WhatIf]:
    """The answer to every named edit of a run, as :func:`simfluence.whatif.what_if` gives it.

    Raises what ``what_if`` raises.
    """
    answers = {}
    for name, edit in edits.items():
        again = None if retrain is None else retrain(edit)
        about: dict[str, Any] = {"train": runs.train, "test": runs.test, "level": level, "widened": widened}
        answer = what_if(fitted, run, edit, **about, retrain=again)
        answers[name] = replace(answer, notes=[*answer.notes, *fitted.notes])
    return answers


def compared(answers: Mapping[str, WhatIf], edits: Mapping[str, Edit | Edits]) -> pd.DataFrame:
    """One row an edit and group of test examples, and one of all of them.

    Columns: edit (its name), sentence, steps (of the edited curriculum), test, change (the mean change of the
    loss after the last step), with bands low, high and verdict, and after retraining true_change.
    """
    found = []
    for name, answer in answers.items():
        columns = ("change", "low", "high", "verdict", "true_change")
        groups = answer.groups.reindex(columns=[name for name in columns if name in answer.groups])
        of = groups.rename_axis("test").reset_index()
        found.append(of.assign(edit=name, sentence=edits[name].sentence, steps=len(answer.edited)))
    table = pd.concat(found, ignore_index=True)
    numbers = [name for name in ("change", "low", "high", "true_change") if name in table]
    table[numbers] = table[numbers].astype(np.float64)
    first = ["edit", "sentence", "steps", "test"]
    return table[[*first, *(name for name in table if name not in first)]]
