"""Runs on mixtures of data, as two tables: the proportions of every run, and its losses by domain.

| table | columns |
|---|---|
| proportions | the run's name, and the share of every group. One row a run; or several with a column |
|             | ``step``, where a row holds for the steps after the row before, up to and with its own |
| losses | the run's name, and the loss of every domain. One row a run, about its end; or several with a |
|        | column ``step``, the steps taken before, 0 for none |

Both may be one table, whose columns are distinguished by prefixes. Groups become the training examples of the
set and domains its test examples, each in a group of its own name.

Such runs are long and seldom evaluated. A step of the set is therefore as many training steps as divide all
numbers of steps in the tables: 1000, where losses are those after 3000, 4000 and 6000. How many is in the
runs' ``config`` as "steps_each". Where no table has a column ``step``, a run is one step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.curriculum import Array, IntArray, check_shares
from simfluence.errors import RunDataError
from simfluence.runs.importing import Log, Read
from simfluence.runs.tables import ExampleTable, as_text

Source: TypeAlias = pd.DataFrame | str | Path


@dataclass(frozen=True)
class Table:
    """A table as it was read: what of, the runs' names (in their order, and by row), the column of steps
    (None if there is none), and the other columns with their numbers [row, column].
    """

    what: str
    names: list[str]
    run: npt.NDArray[np.object_]
    steps: IntArray | None
    columns: list[str]
    numbers: Array

    @classmethod
    def of(cls, table: Source, what: str, run: str = "run", step: str = "step", prefix: str = "") -> Table:
        """A table of ``what``, "proportions" or "losses".

        run, step : the names of the columns of runs and of steps.
        prefix : what the names of the other columns that are read begin with.
        """
        frame = _opened(table, what)
        if run not in frame:
            raise RunDataError(f"the table of {what} needs a column {run!r}, got only {list(frame.columns)}")
        names = np.array([as_text(name) for name in frame[run]], object)
        if (unnamed := np.flatnonzero(names == "")).size:
            raise RunDataError(f"row {unnamed[0]} of {what} names no run")
        columns = [name for name in frame.columns if name.startswith(prefix) and name not in (run, step)]
        if not columns or len(frame) == 0:
            raise RunDataError(
                f"the table of {what} has {len(frame)} rows and {len(columns)} columns whose names begin with"
                f" {prefix!r}; expected some of both, got the columns {list(frame.columns)}"
            )
        if len(set(columns)) < len(columns):
            twice = next(name for name in columns if columns.count(name) > 1)
            raise RunDataError(f"the table of {what} has several columns {twice!r}")
        numbers = np.stack([_numbers(frame[name], what) for name in columns], 1)
        steps = _steps(frame[step], what) if step in frame else None
        if (again := pd.DataFrame({"run": names, "step": 0 if steps is None else steps}).duplicated()).any():
            where = f"; a table of several steps has a column {step!r}" if steps is None else " at one step"
            raise RunDataError(f"run {names[again][0]!r} stands twice in the table of {what}{where}")
        short = [name.removeprefix(prefix) for name in columns]
        return cls(what, list(dict.fromkeys(names)), names, steps, short, numbers)

    def of_run(self, name: str) -> tuple[IntArray | None, IntArray]:
        """(its steps, ascending, or None; their rows)"""
        rows = np.flatnonzero(self.run == name)
        if self.steps is None:
            return None, rows
        rows = rows[np.argsort(self.steps[rows])]
        return self.steps[rows], rows


def read(
    shares: Table, losses: Table, units: float | Mapping[Any, float] = 1.0, *, normalize: bool = False
) -> Read:
    """The runs in both tables; what ``units`` and ``normalize`` are, and the errors:
    :meth:`RunSet.from_mixtures <simfluence.runs.RunSet.from_mixtures>`.
    """
    try:
        of_rows = check_shares(shares.numbers, "row", normalize=normalize)
    except ValueError as error:
        raise RunDataError(f"the table of proportions: {error}, or pass normalize=True") from None
    shares = dataclasses.replace(shares, numbers=of_rows)
    for there, where, missing in ((losses, "losses", shares), (shares, "proportions", losses)):
        if lacking := [name for name in there.names if name not in missing.names]:
            raise RunDataError(
                f"run {lacking[0]!r} has {where} but no {missing.what} ({len(lacking)} such runs)"
            )
    consumed = _units(units, losses.names)
    steps = [int(at) for table in (shares, losses) if table.steps is not None for at in table.steps]
    each = math.gcd(*steps) or 1  # of no steps, or 0 alone, gcd is 0
    logs = [_log(name, shares, losses, consumed[name] * each, each) for name in losses.names]
    return logs, _table(shares.columns), _table(losses.columns)


def _log(name: str, shares: Table, losses: Table, units: float, each: int) -> Log:
    """One run, whose steps are ``each`` training steps and consume ``units``."""
    (at, loss_rows), (until, share_rows) = losses.of_run(name), shares.of_run(name)
    if until is None:
        until = np.array([each if at is None else max(at[-1], each)])
    if at is None:
        at = until[-1:]
    if at[-1] > until[-1]:
        raise RunDataError(
            f"run {name!r} has losses after {at[-1]} steps, but proportions only up to step {until[-1]}"
        )
    groups = np.array(shares.columns, object)
    used = [shares.numbers[row] > 0 for row in share_rows]
    batches = [groups[which].tolist() for which in used]
    amounts = [
        (shares.numbers[row][which] * units).tolist() for row, which in zip(share_rows, used, strict=True)
    ]
    steps = range(1, until[-1] // each + 1)
    row_of = np.searchsorted(until // each, steps).tolist()
    return Log(
        name=name,
        batches={t: batches[row] for t, row in zip(steps, row_of, strict=True)},
        evaluated=at // each,
        metrics={"loss": losses.numbers[loss_rows]},
        config={"source": "tables of mixtures", "steps_each": each},
        amounts={t: amounts[row] for t, row in zip(steps, row_of, strict=True)},
    )


def _opened(table: Source, what: str) -> pd.DataFrame:
    """The table, its columns named by text."""
    try:
        if isinstance(table, pd.DataFrame):
            frame = table.reset_index(drop=True)
        else:
            frame = pd.read_parquet(table) if Path(table).suffix == ".parquet" else pd.read_csv(table)
    except (OSError, ValueError) as error:
        raise RunDataError(f"{table} cannot be read as a table of {what}: {error}") from error
    return frame.set_axis([as_text(name) for name in frame.columns], axis=1)


def _numbers(column: pd.Series[Any], what: str) -> Array:
    """A column as floats; NaN where it is blank, which only losses may be."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    blank = column.isna().to_numpy() if what == "losses" else False
    if (bad := np.flatnonzero(np.isnan(values) & ~blank)).size:
        raise RunDataError(
            f"row {bad[0]} of {what}: {column.name} must be a number, got {str(column.iloc[bad[0]])!r}"
        )
    if what == "proportions" and (bad := np.flatnonzero(~np.isfinite(values) | (values < 0))).size:
        raise RunDataError(
            f"row {bad[0]} of {what}: {column.name} must be at least 0 and finite, got {values[bad[0]]:g}"
        )
    return values


def _steps(column: pd.Series[Any], what: str) -> IntArray:
    steps, least = _numbers(column, "steps"), 1 if what == "proportions" else 0
    if (wrong := np.flatnonzero((steps % 1 != 0) | (steps < least))).size:
        raise RunDataError(
            f"row {wrong[0]} of {what}: {column.name} must be a whole number from {least}, got"
            f" {steps[wrong[0]]:g}"
        )
    return steps.astype(np.int64)


def _units(units: float | Mapping[Any, float], names: list[str]) -> dict[str, float]:
    """Those of every run."""
    given = {as_text(name): value for name, value in units.items()} if isinstance(units, Mapping) else None
    if given is not None and (missing := [name for name in names if name not in given]):
        raise RunDataError(f"units has none of run {missing[0]!r}")
    try:
        found = {name: float(units if given is None else given[name]) for name in names}  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise RunDataError(f"units must be one number, or run name → number: {error}") from None
    for name, value in found.items():
        if not (math.isfinite(value) and value > 0):
            raise RunDataError(f"units must be above 0 and finite, got {value} for run {name!r}")
    return found


def _table(names: list[str]) -> ExampleTable:
    return ExampleTable(pd.DataFrame({"id": names, "group": names}))
