"""The steps of a run as Arrow record batches: the entries of a journal, the rows of steps.parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simfluence.runs.run import Run

STEP_COLUMNS = ("step", "learning_rate", "batch", "train_loss")
"""What comes before the metrics, one column each."""


def steps_schema(metrics: Mapping[str, np.dtype[Any]], n_test: int) -> pa.Schema:
    fields = [
        pa.field("step", pa.int32()),
        pa.field("learning_rate", pa.float64()),
        pa.field("batch", pa.list_(pa.int32())),
        pa.field("train_loss", pa.float64()),
    ]
    for name, dtype in metrics.items():
        if name in STEP_COLUMNS:
            raise ValueError(f"a metric cannot be named {name!r}: a column of that name is there already")
        fields.append(pa.field(name, pa.list_(pa.from_numpy_dtype(dtype), n_test)))
    return pa.schema(fields)


def step_row(
    schema: pa.Schema,
    step: int,
    batch: Sequence[int] | npt.NDArray[np.int64],
    learning_rate: float | None,
    train_loss: float | None,
    metrics: Mapping[str, npt.NDArray[np.floating]] | None,
) -> pa.RecordBatch:
    """One step as a record batch; ``metrics`` None where this step was not evaluated."""
    columns = {
        "step": pa.array([step], pa.int32()),
        "learning_rate": pa.array([learning_rate], pa.float64()),
        "batch": pa.array([np.asarray(batch, np.int32)], pa.list_(pa.int32())),
        "train_loss": pa.array([train_loss], pa.float64()),
    }
    for field in list(schema)[len(STEP_COLUMNS) :]:
        if metrics is None:
            columns[field.name] = pa.nulls(1, field.type)
        else:
            values = pa.array(metrics[field.name], field.type.value_type)
            columns[field.name] = pa.FixedSizeListArray.from_arrays(values, type=field.type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def check_metrics(schema: pa.Schema, metrics: Mapping[str, npt.NDArray[np.floating]] | None) -> None:
    """ValueError if a loss function returns other metrics than it did at first."""
    expected = schema.names[len(STEP_COLUMNS) :]
    if metrics is not None and set(metrics) != set(expected):
        raise ValueError(f"the loss function returned {sorted(metrics)}, but at first {sorted(expected)}")


def metrics_of(row: pa.RecordBatch) -> dict[str, npt.NDArray[np.floating]] | None:
    """The metrics of one journal entry, None if it was not evaluated."""
    if not row.column("loss").is_valid()[0].as_py():
        return None
    return {name: row.column(name).flatten().to_numpy() for name in row.schema.names[len(STEP_COLUMNS) :]}


def rows_of(run: Run) -> Iterator[pa.RecordBatch]:
    """The record batches that the journal of a run would hold."""
    dtypes = {name: values.dtype for name, values in run.metrics.items()}
    schema = steps_schema(dtypes, run.loss.shape[1])
    evaluated = {int(step): row for row, step in enumerate(run.evaluated)}
    for step in range(len(run) + 1):
        row = evaluated.get(step)
        yield step_row(
            schema,
            step,
            run.curriculum[step - 1] if step else [],
            run.learning_rate[step - 1] if step else None,
            run.train_loss[step - 1] if step else None,
            None if row is None else {name: values[row] for name, values in run.metrics.items()},
        )
