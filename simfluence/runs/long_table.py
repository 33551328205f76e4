"""Run sets as one long table, for spreadsheets, other tools and other people's recordings.

| column | what a row says |
|---|---|
| run | the run's name |
| step | of a row about a training example: the step that consumed it, 1 for the first; |
|      | of a row about a test example: the steps taken before its loss, 0 for none |
| example | the id of a training example that the step consumed, row by row in the batch's order |
| test | the id of a test example |
| loss | its loss |
| amount | how much of it, where steps consume shares of groups: on all rows about training examples |
| learning_rate, train_loss | of the step, on its rows about training examples |
| any other | a further metric: a number on rows about test examples, nothing on the others |

A row is about either a training or a test example. A table has no room for the runs' optimizers, seeds and
configurations, nor for examples that were never consumed: pass the tables of examples to read a set back as
it was. Columns without a name (a data frame's index) are not read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.errors import RunDataError
from simfluence.runs.importing import Log, Read
from simfluence.runs.run import FloatArray, Run
from simfluence.runs.storage import natural_order
from simfluence.runs.tables import ExampleTable, as_text
from simfluence.runs.wide_table import as_long, is_wide

Table: TypeAlias = pd.DataFrame | str | Path
Batches: TypeAlias = Table | Mapping[str, Sequence[Sequence[Any]]]
"""Run name → the ids that each of its steps consumed; or a table with the columns run, step and example."""

_NAMES = ("run", "example", "test")
_OF_STEPS = ("learning_rate", "train_loss")
_AMOUNT = "amount"
_INDEX = re.compile(r"|Unnamed: \d+.*|__index_level_\d+__")
_WHOLE_FLOAT = re.compile(r"-?\d+\.0|-?\d(\.\d+)?e\+\d+")


def write(
    runs: Sequence[Run], train: ExampleTable, test: ExampleTable, path: str | Path | None = None
) -> pd.DataFrame:
    """These runs as a long table; written to a .csv or .parquet file too, if a path is given.

    Losses keep their bits in either (float32 ones are written out with all digits of their value).
    """
    names = sorted({name for run in runs for name in run.metrics}, key=lambda name: (name != "loss", name))
    frame = pd.concat([_rows_of(run, train, test, names) for run in runs], ignore_index=True)
    if all(run.curriculum.amounts is None for run in runs):
        frame = frame.drop(columns=_AMOUNT)
    if path is not None:
        path = Path(path)
        if path.suffix == ".parquet":
            frame.to_parquet(path, index=False)
        elif path.suffix == ".csv":
            frame.astype(dict.fromkeys(frame.columns.difference([*_NAMES, "step"]), "float64")).to_csv(
                path, index=False
            )
        else:
            raise ValueError(f"expected a name that ends in .csv or .parquet, got {path.name!r}")
    return frame


def read(
    table: Table,
    *,
    batches: Batches | None = None,
    prefix: str = "",
    train: ExampleTable | None = None,
    test: ExampleTable | None = None,
    dtype: npt.DTypeLike | None = None,
    allow_missing: bool = False,
) -> Read:
    """The runs in a long table (or a wide one). ``allow_missing`` is whether a test example may lack a loss
    where others have one; other parameters, and errors, are those of
    :meth:`RunSet.from_table <simfluence.runs.RunSet.from_table>`.
    """
    frame = _opened(table, train, test)
    if is_wide(frame, prefix):
        frame = as_long(frame, prefix, with_batches=batches is None)
    if batches is not None:
        frame = pd.concat([frame, _rows_of_batches(batches, train)], ignore_index=True)
    if missing := [name for name in ("run", "step", "example", "test", "loss") if name not in frame]:
        raise RunDataError(f"the table needs a column {missing[0]!r}, got only {list(frame.columns)}")
    for name in _NAMES:
        frame[name] = [value if type(value) is str else as_text(value) for value in frame[name]]
    frame["step"] = _steps(frame)
    _check_rows(frame)
    metrics = _metrics(frame, dtype)
    train = train or _numbered_like(frame["example"])
    test = test or _numbered_like(frame["test"])
    frame = frame[["run", "step", "example", "test"]].assign(
        **metrics, **{name: _numbers(frame, name) for name in (_AMOUNT, *_OF_STEPS) if name in frame}
    )
    logs = [
        _log(str(name), rows, test, list(metrics), allow_missing)
        for name, rows in frame.groupby("run", sort=False)
    ]
    return logs, train, test


# ---------------------------------------------------------------------------------------- writing


def _rows_of(run: Run, train: ExampleTable, test: ExampleTable, names: list[str]) -> pd.DataFrame:
    step = np.repeat(np.arange(1, len(run) + 1), run.curriculum.batch_sizes)
    consumed = pd.DataFrame(
        {
            "step": step,
            "example": np.array(train.ids, object)[run.curriculum.examples],
            "test": "",
            _AMOUNT: run.curriculum.uses,
            "learning_rate": run.learning_rate[step - 1],
            "train_loss": run.train_loss[step - 1],
        }
    )
    n_test = len(test)
    evaluated = pd.DataFrame(
        {
            "step": np.repeat(run.evaluated, n_test),
            "example": "",
            "test": np.tile(np.array(test.ids, object), len(run.evaluated)),
            **{name: values.ravel() for name, values in run.metrics.items()},
        }
    )
    rows = pd.concat([consumed, evaluated], ignore_index=True).sort_values("step", kind="stable")
    for name, values in run.metrics.items():  # joined with rows that have none, they keep their type
        rows[name] = rows[name].astype(values.dtype)
    return rows.assign(run=run.id).reindex(
        columns=["run", "step", "example", "test", _AMOUNT, *names, *_OF_STEPS]
    )


# ---------------------------------------------------------------------------------------- reading


def _opened(table: Table, train: ExampleTable | None, test: ExampleTable | None) -> pd.DataFrame:
    """The table with a fresh index, without the columns that were an index."""
    if isinstance(table, pd.DataFrame):
        frame = table.reset_index(drop=True)
    else:
        path = Path(table)
        try:
            if path.suffix == ".parquet":
                frame = pd.read_parquet(path).reset_index(drop=True)
            else:  # as text: an id may read "NA" or "007", and floats are to keep their last bit
                frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False)
                known = {"run": None, "example": train, "test": test}
                for name in known.keys() & set(frame.columns):
                    frame[name] = _whole(frame[name], known[name])
        except (OSError, ValueError) as error:
            raise RunDataError(f"{path} cannot be read as a table: {error}") from error
    return frame[[name for name in frame if not _INDEX.fullmatch(str(name))]]


def _whole(ids: pd.Series[Any], table: ExampleTable | None) -> list[str]:
    """The ids in a column of a CSV file. Where all read like floats ("3.0") they were integers beside blanks,
    which pandas writes so, and lose the ".0"; unless the table has them as they are.
    """
    floats = all(text == "" or _WHOLE_FLOAT.fullmatch(text) for text in ids)
    if not floats or (table is not None and set(ids) - {""} <= set(table.ids)):
        return ids.tolist()
    return [text and as_text(float(text)) for text in ids]


def _rows_of_batches(batches: Batches, train: ExampleTable | None) -> pd.DataFrame:
    if not isinstance(batches, Mapping):
        frame = _opened(batches, train, None)
        if missing := [name for name in ("run", "step", "example") if name not in frame]:
            raise RunDataError(f"batches needs a column {missing[0]!r}, got only {list(frame.columns)}")
        return frame
    rows = [
        (run, step, example)
        for run, steps in batches.items()
        for step, batch in enumerate(steps, start=1)
        for example in batch
    ]
    return pd.DataFrame(rows, columns=["run", "step", "example"], dtype=object)


def _steps(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    steps = _numbers(frame, "step").astype(np.float64)
    wrong = ~np.isfinite(steps) | (steps % 1 != 0) | (steps < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise RunDataError(f"row {row}: step must be a whole number from 0, got {frame['step'].iloc[row]!r}")
    return steps.astype(np.int64)


def _check_rows(frame: pd.DataFrame) -> None:
    if (unnamed := np.flatnonzero(frame["run"] == "")).size:
        raise RunDataError(f"row {unnamed[0]} names no run")
    if (unclear := np.flatnonzero((frame["example"] == "") == (frame["test"] == ""))).size:
        raise RunDataError(
            f"row {unclear[0]} must name either an example or a test example, not both or neither"
        )


def _metrics(frame: pd.DataFrame, dtype: npt.DTypeLike | None) -> dict[str, FloatArray]:
    """The columns that hold metrics, as floats [row]; a warning names those that do not."""
    about_test = (frame["test"] != "").to_numpy()
    metrics = {"loss": _numbers(frame, "loss")}
    left_out = []
    for name in frame.columns.difference([*_NAMES, "step", "loss", _AMOUNT, *_OF_STEPS], sort=False):
        try:
            values = _numbers(frame, name)
        except RunDataError:
            left_out.append(name)
            continue
        if np.isnan(values[~about_test]).all() and not np.isnan(values).all():
            metrics[str(name)] = values
        else:
            left_out.append(name)
    if left_out:
        warnings.warn(
            f"left out of the table: {', '.join(map(str, left_out))} (a metric is a column of numbers that"
            " only rows about test examples have)",
            stacklevel=4,
        )
    return metrics if dtype is None else {name: values.astype(dtype) for name, values in metrics.items()}


def _numbers(frame: pd.DataFrame, name: str) -> FloatArray:
    """A column as floats, NaN where it is blank; floating columns keep their type."""
    column = frame[name]
    if isinstance(column.dtype, np.dtype) and np.issubdtype(column.dtype, np.floating):
        return column.to_numpy()
    values: list[float] = []
    try:
        for value in column:
            blank = value is None or value is pd.NA or value == ""
            values.append(np.nan if blank else float(value))
    except (TypeError, ValueError):
        raise RunDataError(f"row {len(values)}: {name} must be a number, got {value!r}") from None
    return np.array(values, np.float64)


def _numbered_like(ids: pd.Series[Any]) -> ExampleTable:
    return ExampleTable(pd.DataFrame({"id": sorted(set(ids) - {""}, key=natural_order)}))


def _log(
    name: str, rows: pd.DataFrame, test: ExampleTable, metrics: Sequence[str], allow_missing: bool
) -> Log:
    """One run (see :func:`read`)."""
    consumed, evaluated = rows[rows["example"] != ""], rows[rows["test"] != ""]
    at = np.unique(evaluated["step"])
    if len(at) == 0:
        raise RunDataError(f"run {name!r} has no losses")
    place = np.searchsorted(at, evaluated["step"]), test.rows(evaluated["test"])
    times = np.zeros((len(at), len(test)), np.int64)
    np.add.at(times, place, 1)
    if (wrong := np.argwhere(times > 1 if allow_missing else times != 1)).size:
        row, z = wrong[0]
        raise RunDataError(
            f"run {name!r}: test example {test.ids[z]!r} has {times[row, z]} losses at step {at[row]},"
            " expected one"
        )
    values = {}
    for metric in metrics:
        column = evaluated[metric].to_numpy()
        if metric == "loss" or not np.isnan(column).all():  # else another run's metric
            values[metric] = np.full(times.shape, np.nan, column.dtype)
            values[metric][place] = column
    by_step = consumed.groupby("step")
    batches: dict[Any, Any] = by_step["example"].agg(list).to_dict()
    rate, train_loss = (dict[Any, Any](by_step[of].first()) if of in rows else {} for of in _OF_STEPS)
    amounts: dict[Any, Any] = {}
    if _AMOUNT in rows and not consumed[_AMOUNT].isna().all():
        if (blank := consumed["example"][consumed[_AMOUNT].isna()]).size:
            raise RunDataError(f"run {name!r}: no amount of {blank.iloc[0]!r}, though others have one")
        amounts = by_step[_AMOUNT].agg(list).to_dict()
    return Log(name, batches, at, values, learning_rate=rate, train_loss=train_loss, amounts=amounts)
