"""The steps of a run as Arrow record batches: the entries of a journal, the rows of steps.parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simfluence.runs.run import Run

REQUIRED = ("step", "learning_rate", "batch", "train_loss")
GROUP_RATES = "group_rates"
AMOUNTS = "amounts"
STEP_COLUMNS = (*REQUIRED, GROUP_RATES, AMOUNTS)
"""What comes before the metrics, one column each; the rates of parameter groups only where they differ, the
amounts of a batch only where they are not 1 each."""


def steps_schema(
    metrics: Mapping[str, np.dtype[Any]], n_test: int, *, group_rates: bool = False, amounts: bool = False
) -> pa.Schema:
    """The columns of a journal or of steps.parquet; ``group_rates``, ``amounts``: with these."""
    fields = [
        pa.field("step", pa.int32()),
        pa.field("learning_rate", pa.float64()),
        pa.field("batch", pa.list_(pa.int32())),
        pa.field("train_loss", pa.float64()),
    ]
    if group_rates:
        fields.append(pa.field(GROUP_RATES, pa.list_(pa.float64())))
    if amounts:
        fields.append(pa.field(AMOUNTS, pa.list_(pa.float64())))
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
    group_rates: Sequence[float] | None = None,
    amounts: Sequence[float] | npt.NDArray[np.float64] | None = None,
) -> pa.RecordBatch:
    """One step as a record batch; ``metrics`` None where this step was not evaluated.

    group_rates : the learning rates of the parameter groups, where there are several.
    amounts : how much of each in the batch the step consumed, where that is not 1 each.
    """
    columns = {
        "step": pa.array([step], pa.int32()),
        "learning_rate": pa.array([learning_rate], pa.float64()),
        "batch": pa.array([np.asarray(batch, np.int32)], pa.list_(pa.int32())),
        "train_loss": pa.array([train_loss], pa.float64()),
        GROUP_RATES: pa.array([group_rates], pa.list_(pa.float64())),
        AMOUNTS: pa.array([amounts], pa.list_(pa.float64())),
    }
    for field in (schema.field(name) for name in metric_names(schema)):
        if metrics is None:
            columns[field.name] = pa.nulls(1, field.type)
        else:
            values = pa.array(metrics[field.name], field.type.value_type)
            columns[field.name] = pa.FixedSizeListArray.from_arrays(values, type=field.type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def metric_names(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name not in STEP_COLUMNS]


def metrics_of(row: pa.RecordBatch) -> dict[str, npt.NDArray[np.floating]] | None:
    """The metrics of one journal entry, None if it was not evaluated."""
    if not row.column("loss").is_valid()[0].as_py():
        return None
    return {name: row.column(name).flatten().to_numpy() for name in metric_names(row.schema)}


def consumption_of(row: pa.RecordBatch) -> tuple[list[int], float | None, list[float] | None]:
    """A journal entry's batch, learning rate, and rates of parameter groups (None: there is one group)."""
    rates = row.column(GROUP_RATES)[0].as_py() if GROUP_RATES in row.schema.names else None
    return row.column("batch")[0].as_py(), row.column("learning_rate")[0].as_py(), rates


def without_group_rates(entries: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for row in entries:
        yield row.select([name for name in row.schema.names if name != GROUP_RATES])


def rates_by_group(
    learning_rate: Iterable[float | None], group_rates: Iterable[Sequence[float] | None]
) -> npt.NDArray[np.float64] | None:
    """float [step, group]: the rate of every parameter group, or None if all have always had the same.

    learning_rate, group_rates : the columns, a value a step. Where the second has none there was one group;
        groups that were added later had the rate 0 until then.
    """
    rows = [
        [np.nan if rate is None else rate] if rates is None else list(rates)
        for rate, rates in zip(learning_rate, group_rates, strict=True)
    ]
    width = max(map(len, rows), default=1)
    found = np.array([row + [0.0] * (width - len(row)) for row in rows], np.float64).reshape(-1, width)
    same = np.array_equal(found, np.broadcast_to(found[:, :1], found.shape), equal_nan=True)
    return None if same else found


def rows_of(run: Run) -> Iterator[pa.RecordBatch]:
    """The record batches that the journal of a run would hold."""
    dtypes = {name: values.dtype for name, values in run.metrics.items()}
    rates = run.group_rates
    curriculum, amounts = run.curriculum, run.curriculum.amounts
    by_step = None if amounts is None else np.split(amounts, curriculum.offsets[1:-1])
    with_amounts = amounts is not None
    schema = steps_schema(dtypes, run.loss.shape[1], group_rates=rates is not None, amounts=with_amounts)
    evaluated = {int(step): row for row, step in enumerate(run.evaluated)}
    for step in range(len(run) + 1):
        row = evaluated.get(step)
        yield step_row(
            schema,
            step,
            curriculum[step - 1] if step else [],
            run.learning_rate[step - 1] if step else None,
            run.train_loss[step - 1] if step else None,
            None if row is None else {name: values[row] for name, values in run.metrics.items()},
            rates[step - 1] if step and rates is not None else None,
            by_step[step - 1] if step and by_step is not None else None,
        )
