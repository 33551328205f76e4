"""The training tables of runs over a stream, whose examples are not known before it is gone through.

The examples.parquet of such a set holds its test examples only. Each run has a training table of its own: the
examples that it consumed, in the order in which it first did so. Its batches hold row numbers of this table.

    <run id>/train.arrow      while recording: a journal, in which examples stand before the step that first
                              consumed them is recorded
    <run id>/train.parquet    when complete

The training table of the set is the union of those of its runs, one run after the other. It grows when a run
is recorded that consumes other examples; ``RunSet.save`` writes a set whose table no longer does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import journal
from simfluence.runs.run import Run
from simfluence.runs.tables import COLUMNS, ExampleTable

TABLE, JOURNAL = "train.parquet", "train.arrow"
SCHEMA = pa.schema([pa.field(name, pa.string()) for name in COLUMNS])


def read_table(folder: Path) -> pd.DataFrame:
    """The examples that a run consumed, complete or not; without a row if it had no step.

    Of a run that is being recorded, read the steps first: their examples stand here before.

    Raises RunDataError if the table is damaged.
    """
    try:
        if (folder / JOURNAL).is_file():  # complete runs have none, once all is written
            table = pa.Table.from_batches(journal.read(folder / JOURNAL), SCHEMA)
        else:
            table = pq.read_table(folder / TABLE, columns=COLUMNS)
    except FileNotFoundError:  # it had no step yet; of a complete run, the manifest lists it
        table = SCHEMA.empty_table()
    except (pa.ArrowException, OSError) as error:
        raise RunDataError(f"{folder / TABLE} is damaged: {error}") from error
    return table.to_pandas()


def union(tables: Iterable[pd.DataFrame]) -> ExampleTable:
    """One table of the examples in all of these, each where it occurs first.

    Raises RunDataError if there are none, or two that share an id differ in group or content.
    """
    every = pd.concat([pd.DataFrame(columns=COLUMNS), *tables], ignore_index=True)
    if every.empty:
        raise RunDataError("no example was consumed yet: the runs over this stream had no step")
    first = every.drop_duplicates(["id", "group", "hash"])
    twice = first["id"][first["id"].duplicated()]
    if len(twice):
        raise RunDataError(
            f"two runs consumed different examples with the id {twice.iloc[0]!r}: give each an id of its own,"
            " or none (an example is then known by its content)"
        )
    return ExampleTable(first)


def renumbered(run: Run, own: pd.DataFrame, table: ExampleTable) -> Run:
    """The run with row numbers of ``table``, in place of those of its own table."""
    before = run.curriculum
    rows = table.rows(own["id"])
    curriculum = Curriculum(rows[before.examples], before.offsets, len(table), before.amounts)
    return dataclasses.replace(run, curriculum=curriculum)
