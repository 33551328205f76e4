"""Run sets as one long table, for spreadsheets, other tools and other people's recordings.

| column | |
|---|---|
| run | the run's name |
| step | a row about an example: the step that consumed it, 1 for the first; |
|      | a row about a test example: the steps taken before its loss, 0 for none |
| example | the id of a training example that the step consumed, row by row in the batch's order |
| test | the id of a test example |
| loss | its loss; one more column a further metric |
| learning_rate, train_loss | of the step, on its rows about examples |

A row holds either an example or a test. Runs' optimizers, seeds and configurations are not in it, nor
are examples that were never consumed: pass the tables to read a set back as it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs.run import Run
from simfluence.runs.storage import natural_order
from simfluence.runs.tables import ExampleTable

_TEXTS = ("run", "example", "test")
_OF_STEPS = ("learning_rate", "train_loss")


def write(
    runs: Sequence[Run], train: ExampleTable, test: ExampleTable, path: str | Path | None = None
) -> pd.DataFrame:
    """These runs as a long table; written to a .csv or .parquet file too, if a path is given.

    Losses keep their bits in either (float32 ones are written out with all digits of their value).
    """
    names = sorted({name for run in runs for name in run.metrics}, key=lambda name: (name != "loss", name))
    frame = pd.concat([_rows_of(run, train, test, names) for run in runs], ignore_index=True)
    if path is not None:
        path = Path(path)
        if path.suffix == ".parquet":
            frame.to_parquet(path, index=False)
        elif path.suffix == ".csv":
            frame.astype(dict.fromkeys((*names, *_OF_STEPS), "float64")).to_csv(path, index=False)
        else:
            raise ValueError(f"expected a name that ends in .csv or .parquet, got {path.name!r}")
    return frame


def read(
    table: pd.DataFrame | str | Path,
    *,
    train: ExampleTable | None = None,
    test: ExampleTable | None = None,
    dtype: npt.DTypeLike | None = None,
) -> tuple[list[Run], ExampleTable, ExampleTable]:
    """The runs in a long table, or in a .csv or .parquet file of one; their training and their test table.

    Parameters
    ----------
    train, test : the tables of examples; by default the ids that occur, in natural order.
    dtype : of the losses; by default the table's (float64 from CSV).

    Raises
    ------
    RunDataError : a column or a step is missing, a row says nothing or too much, a test example has
        no loss or two at a step where others have one, or an id is not in its table.
    """
    frame = _read_file(table) if isinstance(table, str | Path) else table.copy()
    if missing := [name for name in ("run", "step", "example", "test", "loss") if name not in frame]:
        raise RunDataError(f"the table needs a column {missing[0]!r}, got only {list(frame.columns)}")
    for name in _TEXTS:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
    if not np.isfinite(steps := pd.to_numeric(frame["step"], errors="coerce")).all() or (steps % 1).any():
        row = int(np.flatnonzero(~np.isfinite(steps) | (steps % 1 != 0))[0])
        raise RunDataError(f"row {row}: step must be a whole number, got {frame['step'].iloc[row]!r}")
    frame["step"] = steps.astype(np.int64)
    unclear = (frame["example"] == "") == (frame["test"] == "")
    if unclear.any():
        row = int(np.flatnonzero(unclear)[0])
        raise RunDataError(f"row {row} must name either an example or a test example, not both or neither")
    train = train or _numbered_like(frame["example"])
    test = test or _numbered_like(frame["test"])
    runs = [_run(str(run_id), rows, train, test, dtype) for run_id, rows in frame.groupby("run", sort=False)]
    return runs, train, test


def _rows_of(run: Run, train: ExampleTable, test: ExampleTable, names: list[str]) -> pd.DataFrame:
    step = np.repeat(np.arange(1, len(run) + 1), run.curriculum.batch_sizes)
    consumed = pd.DataFrame(
        {
            "step": step,
            "example": np.array(train.ids, object)[run.curriculum.examples],
            "test": "",
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
    return rows.assign(run=run.id).reindex(columns=["run", "step", "example", "test", *names, *_OF_STEPS])


def _read_file(path: str | Path) -> pd.DataFrame:
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        # as text first: an id may read "NA" or "007"; then the floats, to the last bit
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False)
    except (OSError, ValueError) as error:
        raise RunDataError(f"{path} cannot be read as a table: {error}") from error
    numbers = [name for name in frame.columns if name not in _TEXTS]
    for name in numbers:
        try:
            frame[name] = [float(text) if text else np.nan for text in frame[name]]
        except ValueError as error:
            raise RunDataError(f"{path}, column {name!r}: {error}") from None
    return frame


def _numbered_like(ids: pd.Series[Any]) -> ExampleTable:
    return ExampleTable(pd.DataFrame({"id": sorted(set(ids) - {""}, key=natural_order)}))


def _run(
    run_id: str, rows: pd.DataFrame, train: ExampleTable, test: ExampleTable, dtype: npt.DTypeLike | None
) -> Run:
    consumed, evaluated = rows[rows["example"] != ""], rows[rows["test"] != ""]
    batches = [part for _, part in consumed.groupby("step")]
    steps = np.unique(consumed["step"])
    if not np.array_equal(steps, np.arange(1, len(steps) + 1)):
        missing = next(step for step in range(1, len(steps) + 2) if step not in steps)
        raise RunDataError(f"run {run_id!r}: no example is said to be consumed by step {missing}")
    at = np.unique(evaluated["step"])
    if len(at) == 0:
        raise RunDataError(f"run {run_id!r} has no losses")
    place = np.searchsorted(at, evaluated["step"]), test.rows(evaluated["test"])
    times = np.zeros((len(at), len(test)), np.int64)
    np.add.at(times, place, 1)
    if (wrong := np.argwhere(times != 1)).size:
        row, z = wrong[0]
        raise RunDataError(
            f"run {run_id!r}: test example {test.ids[z]!r} has {times[row, z]} losses at step {at[row]},"
            " expected one"
        )
    metrics = {}
    for name in rows.columns.difference([*_TEXTS, "step", *_OF_STEPS], sort=False):
        column: Hashable = name
        if name != "loss" and evaluated[column].isna().all():
            continue  # another run's metric
        values = evaluated[column].to_numpy()
        if dtype is not None or not np.issubdtype(values.dtype, np.floating):
            values = values.astype(dtype or np.float64)
        metrics[str(name)] = np.empty(times.shape, values.dtype)
        metrics[str(name)][place] = values
    per_step = {
        name: np.array([float(part[name].iloc[0]) if name in part else np.nan for part in batches])
        for name in _OF_STEPS
    }
    return Run(
        id=run_id,
        curriculum=Curriculum.from_batches([train.rows(part["example"]) for part in batches], len(train)),
        metrics=metrics,
        evaluated=at,
        learning_rate=per_step["learning_rate"],
        train_loss=per_step["train_loss"],
    )
