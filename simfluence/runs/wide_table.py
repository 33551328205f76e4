"""Wide tables, as experiment trackers export them: one row a step, one column a test example.

| column | what it holds |
|---|---|
| step (or Step, _step, global_step, trainer/global_step) | the steps taken, 0 before the first |
| run | the run's name; without this column the table is one run, named "run" |
| batch | the ids that the step consumed: a list, "[3, 4]", "3 4" or "3, 4" |
| learning_rate, train_loss | of the step |
| any other | the losses of the test example of that name |

Where a row has none of the losses, the step was not evaluated. Several rows may be about one step. Without a
column ``run``, columns that are all named "<run> - <test example>" are about these runs, as in the charts of
several runs that Weights & Biases exports. Extremes ("…__MIN", "…__MAX") and columns whose name begins with
"_" are not read. Where the batches come from another table, so do the learning rates and training losses.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import numpy as np
import pandas as pd

from simfluence.errors import RunDataError
from simfluence.runs.tables import as_text

STEPS = ("step", "Step", "_step", "global_step", "trainer/global_step")
_OF_STEPS = ("learning_rate", "train_loss")
_SEVERAL = " - "


def is_wide(frame: pd.DataFrame, prefix: str) -> bool:
    """Whether the table has one row a step: it has steps, and a prefix is given or it has no column that only
    long tables have.
    """
    long = {"example", "test", "loss"} & set(frame.columns)
    return any(name in frame for name in STEPS) and (prefix != "" or not long)


def as_long(frame: pd.DataFrame, prefix: str, with_batches: bool) -> pd.DataFrame:
    """The same as a long table (:mod:`simfluence.runs.long_table`).

    Parameters
    ----------
    prefix : what the names of the columns of losses begin with; the rest of each is a test example's id.
        Columns without it are not read.
    with_batches : whether the batches are to be read from the column ``batch``.

    Raises
    ------
    RunDataError : the table has no batches, or no column of losses.
    """
    frame = frame.set_axis([as_text(name) for name in frame.columns], axis=1)
    columns = _loss_columns(frame, prefix)
    step = next(name for name in STEPS if name in frame)
    frame = frame.rename(columns={step: "step"})
    if "run" not in frame:
        frame = frame.assign(run="run")
    parts = [_rows_about(frame, column, run, test) for column, (run, test) in columns.items()]
    if not with_batches:
        return pd.concat(parts, ignore_index=True)
    if "batch" not in frame:
        raise RunDataError(
            "the table says the losses but not what the steps consumed: give it a column 'batch', or pass"
            " batches= (a table with the columns run, step and example, or run name → batches of ids)"
        )
    return pd.concat([_consumed(frame), *parts], ignore_index=True)


def _loss_columns(frame: pd.DataFrame, prefix: str) -> dict[str, tuple[str | None, str]]:
    """The columns of losses: name → (the run, if the name says it, and the test example)."""
    names = list(frame.columns)
    others = {
        *STEPS,
        *_OF_STEPS,
        "run",
        "batch",
        *(f"{name}__{end}" for name in names for end in ("MIN", "MAX")),
    }
    columns = [name for name in names if prefix in name and name not in others and not name.startswith("_")]
    several_runs = "run" not in names and all(_SEVERAL in name for name in columns)
    found: dict[str, tuple[str | None, str]] = {}
    for name in columns:
        run, _, metric = name.partition(_SEVERAL) if several_runs else (None, "", name)
        if metric.startswith(prefix):
            found[name] = run, metric.removeprefix(prefix)
    if not found:
        raise RunDataError(
            f"no column holds the losses of a test example (their names begin with {prefix!r}), got only"
            f" {names}"
        )
    return found


def _rows_about(frame: pd.DataFrame, column: str, run: str | None, test: str) -> pd.DataFrame:
    losses = frame[column]
    there = losses.notna() & (losses.astype(object) != "")
    return pd.DataFrame(
        {
            "run": frame["run"][there] if run is None else run,
            "step": frame["step"][there],
            "example": "",
            "test": test,
            "loss": losses[there],
        }
    )


def _consumed(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each example that a step consumed, with what else is known of the step."""
    rows = []
    for number, (run, step, cell) in enumerate(zip(frame["run"], frame["step"], frame["batch"], strict=True)):
        for example in _ids(cell, number):
            rows.append((run, step, example, number))
    consumed = pd.DataFrame(rows, columns=["run", "step", "example", "row"], dtype=object)
    at = consumed.pop("row").to_numpy(np.int64)
    for name in _OF_STEPS:
        if name in frame:
            consumed[name] = frame[name].to_numpy()[at]
    return consumed.assign(test="")


def _ids(cell: Any, row: int) -> list[Any]:
    """The ids in a cell of the column ``batch``."""
    if isinstance(cell, list | tuple | np.ndarray):
        return list(cell)
    if cell is None or cell is pd.NA or cell != cell:
        return []
    if not isinstance(cell, str):
        return [cell]
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(cell)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, list | tuple):
            return list(value)
    if cell.count("[") != cell.count("]"):
        raise RunDataError(f"row {row}: batch must be a list of ids, got {cell!r}")
    return [part for part in re.split(r"[\s,;]+", cell.strip().strip("[]")) if part]
