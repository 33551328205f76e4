"""How a run set lies on disk: as Parquet, JSON and Arrow files, which other tools can read too.

    <run set>/
      examples.parquet         both tables: split ("train", "test"), id, group, hash, text; where training
                               examples come from a stream, the test table (streams.py)
      <run id>/run.json        manifest, written atomically, last
      <run id>/journal.arrow   while recording: one Arrow record batch a step (journal.py)
      <run id>/steps.parquet   when complete: one row a step, row 0 before the first
      <run id>/checkpoints/    weights for attribution, if kept (recording/weights.py)
      <run id>/resume/         until complete: what the training needs to go on (recording/training_state.py)
      <run id>/attempt-1/      journal and manifest of an attempt before a restart

A row of steps holds ``step``, ``learning_rate``, ``batch`` (row numbers of the training table),
``train_loss`` and one fixed-size list [test] a metric, null where it was not evaluated. ``group_rates``,
a list with the learning rate of every parameter group, is there only where these are not all the same;
``learning_rate`` is then that of the group with the most trained parameters. ``amounts``, a list with how
much of each in the batch the step consumed, is there only where that is not 1 each (shares of groups).

A step that changed no weight (a gradient scaler skipped it, or the optimizer's step was left out) has the
learning rate 0 and an empty batch: its row keeps the numbers of steps those of the training loop, and
:class:`Run` leaves it out.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import filelock
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import journal, rows, streams, strict_json
from simfluence.runs.run import Run, Status
from simfluence.runs.tables import ExampleTable

SCHEMA_VERSION = 1
EXAMPLES, MANIFEST, JOURNAL, STEPS, LOCK = (
    "examples.parquet",
    "run.json",
    "journal.arrow",
    "steps.parquet",
    ".lock",
)
_GROUP_BYTES = 16 * 2**20  # of a Parquet row group: what writing takes is a few times this


# ------------------------------------------------------------------------------------------ names


def check_run_id(run_id: str) -> str:
    """Returns the name if it can name a folder on every system, and raises ValueError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_id):
        raise ValueError(
            f"a run's name may have letters, digits, '.', '_' and '-' (at most 100, the first a letter"
            f" or digit), since a folder is named after it; got {run_id!r}"
        )
    return run_id


def run_ids(path: Path) -> list[str]:
    """The names of all runs in a set's folder, whatever their status, in natural order."""
    names = [entry.parent.name for entry in path.glob(f"*/{MANIFEST}")]
    return sorted(names, key=natural_order)


def natural_order(name: str) -> list[tuple[bool, Any]]:
    """A sort key that orders numbers within names by their value: "run-9" comes before "run-10"."""
    return [(not p.isdecimal(), int(p) if p.isdecimal() else p) for p in re.split(r"([0-9]+)", name)]


# ---------------------------------------------------------------------------------------- writing


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it holds all of the data or, if that is cut off, what it held before."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_atomically(folder / MANIFEST, strict_json.dumps(manifest).encode() + b"\n")


def write_examples(path: Path, train: ExampleTable | None, test: ExampleTable) -> None:
    """train : None for examples of a stream, of which each run has a table of its own."""
    frames = [] if train is None else [train.frame.assign(split="train")]
    _write_table(path / EXAMPLES, pd.concat([*frames, test.frame.assign(split="test")]))


def write_streamed(folder: Path) -> dict[str, Any]:
    """Write the training table of a run over a stream as it is complete. Returns its manifest entry."""
    _write_table(folder / streams.TABLE, streams.read_table(folder))
    return file_entry(folder / streams.TABLE)


def _write_table(file: Path, frame: pd.DataFrame) -> None:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, sink, compression="zstd")
    write_atomically(file, sink.getvalue().to_pybytes())


def write_steps(folder: Path, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
    """Write a journal's record batches to steps.parquet, in bounded memory. Returns its manifest entry."""
    temporary = folder / f"{STEPS}.tmp"
    try:
        with temporary.open("wb") as file:
            _write_parquet(file, batches, folder.name)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / STEPS)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return file_entry(folder / STEPS)


def _write_parquet(file: BinaryIO, batches: Iterable[pa.RecordBatch], run_id: str) -> None:
    writer: pq.ParquetWriter | None = None
    for table in _row_groups(batches):
        if writer is None:
            # a run's losses hardly repeat, but their leading bytes do: split by byte they take a third less
            split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in rows.metric_names(table.schema)}
            writer = pq.ParquetWriter(
                file, table.schema, compression="zstd", use_dictionary=False, column_encoding=split
            )
        writer.write_table(table)
    if writer is None:
        raise RunDataError(f"{run_id}: nothing to write, not even the losses before the first step")
    writer.close()


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows in tables of a bounded size (a table for each row would take kilobytes)."""
    tables: list[pa.Table] = []
    size = 0
    steps = iter(batches)
    while rows_at_once := list(itertools.islice(steps, 32)):
        tables.append(pa.Table.from_batches(rows_at_once).combine_chunks())
        size += tables[-1].nbytes
        if size >= _GROUP_BYTES:
            yield pa.concat_tables(tables).combine_chunks()
            tables, size = [], 0
    if tables:
        yield pa.concat_tables(tables).combine_chunks()


def write_run(folder: Path, run: Run, train: ExampleTable, test: ExampleTable) -> None:
    """Write a whole run, its manifest last."""
    folder.mkdir(parents=True)
    files = {STEPS: write_steps(folder, rows.rows_of(run))}
    write_manifest(
        folder,
        new_manifest(run.id, train, test)
        | {
            "status": run.status,
            "seed": run.seed,
            "optimizer": run.optimizer,
            "config": run.config,
            "environment": run.environment,
            **({} if run.initial_weights is None else {"initial_weights": run.initial_weights}),
            "files": files,
        },
    )


class HasFingerprint(Protocol):
    """A table of examples, finished or growing."""

    @property
    def fingerprint(self) -> str: ...


def new_manifest(run_id: str, train: HasFingerprint, test: HasFingerprint) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "id": run_id,
        "status": "running",
        "fingerprints": {"train": train.fingerprint, "test": test.fingerprint},
    }


def file_entry(path: Path) -> dict[str, Any]:
    """The size and checksum of a file, which its manifest lists so that a torn or edited file is noticed."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# ---------------------------------------------------------------------------------------- reading


def read_examples(path: Path) -> tuple[ExampleTable, ExampleTable]:
    """The training and the test table of a set; over a stream, the examples that its complete runs consumed
    (all runs, if none is complete).
    """
    train, test = read_tables(path)
    if train is None:
        folders = [path / run_id for run_id in run_ids(path)]
        complete = [folder for folder in folders if status(folder) == "complete"]
        train = streams.union(streams.read_table(folder) for folder in complete or folders)
    return train, test


def read_tables(path: Path) -> tuple[ExampleTable | None, ExampleTable]:
    """The tables in a set's examples.parquet; None for training examples of a stream."""
    file = path / EXAMPLES
    if not file.is_file():
        raise RunDataError(f"{path} is not a run set: it has no {EXAMPLES}")
    try:
        frame = pd.read_parquet(file)
        trained, tested = (frame[frame["split"] == split] for split in ("train", "test"))
        return None if trained.empty else ExampleTable(trained), ExampleTable(tested)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise RunDataError(f"{file} is damaged or not ours: {error}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = strict_json.loads(file.read_bytes())
    except FileNotFoundError:
        raise RunDataError(f"{folder} holds no recorded run: it has no {MANIFEST}") from None
    except ValueError as error:
        raise RunDataError(f"{file} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version") if isinstance(manifest, dict) else None
        raise RunDataError(
            f"{file}: expected schema version {SCHEMA_VERSION}, got {found}"
            " (written by another version of simfluence, or not by it)"
        )
    if missing := {"id", "status"} - manifest.keys():
        raise RunDataError(f"{file} is damaged: it does not say the run's {min(missing)}")
    return manifest


def status(folder: Path) -> Status:
    """The run's status. A run that is marked as running while no process records it was interrupted."""
    said = read_manifest(folder)["status"]
    return "interrupted" if said == "running" and not is_being_recorded(folder) else said


def seconds(folder: Path, manifest: Mapping[str, Any]) -> float:
    """How long the run was recorded, over all attempts; a killed one counts up to its last entry."""
    known = float(manifest.get("seconds", 0.0))
    file = folder / JOURNAL
    if manifest["status"] != "running" or "since" not in manifest or not file.exists():
        return known
    since = datetime.datetime.fromisoformat(manifest["since"]).timestamp()
    return known + max(0.0, file.stat().st_mtime - since)


def is_being_recorded(folder: Path) -> bool:
    """Whether a living process holds the run's lock. The system releases the lock of a process that ends."""
    if not (folder / LOCK).exists():
        return False
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return True
    except OSError:  # a read-only folder: nobody can be recording there
        return False
    lock.release()
    return False


def read_run(folder: Path, n_train: int | None, n_test: int, *, verify: bool = True) -> Run:
    """Read a run from its Parquet file or, as long as there is none, from its journal.

    n_train : None for a run over a stream, which is then about its own training table.

    Raises RunDataError if a file is missing, torn, edited, or about other examples.
    """
    manifest = read_manifest(folder)
    current = status(folder)
    if manifest.get("files"):
        if verify:
            for name, expected in manifest["files"].items():
                check_file(folder, name, expected)
        try:
            table = pq.read_table(folder / STEPS)
        except (pa.ArrowException, OSError) as error:
            raise RunDataError(f"{folder / STEPS} is damaged: {error}") from error
    else:
        table = _table(list(journal.read(folder / JOURNAL)), folder)
    if n_train is None:
        n_train = len(streams.read_table(folder))
    try:
        return _run_from_table(table, manifest, current, n_train, n_test)
    except (KeyError, ValueError) as error:
        raise RunDataError(f"{folder}: {error}") from error


def check_file(folder: Path, name: str, expected: Mapping[str, Any]) -> None:
    """Raises RunDataError unless the file has the size and the checksum that the run's manifest lists."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RunDataError(f"{folder / MANIFEST} lists {name!r}, which is not in the run's folder")
    if not file.is_file():
        raise RunDataError(f"{file} is missing, though {MANIFEST} lists it")
    if (found := file_entry(file)) != expected:
        what = "torn" if found["bytes"] != expected.get("bytes") else "edited"
        raise RunDataError(
            f"{file} is {what}: {MANIFEST} says {expected.get('bytes')} bytes with checksum"
            f" {str(expected.get('sha256'))[:12]}…, found {found['bytes']} with {found['sha256'][:12]}…;"
            " restore it from a copy, or delete the run's folder and record it again"
        )


def check_tables(
    folder: Path, manifest: Mapping[str, Any], train: ExampleTable | None, test: ExampleTable
) -> None:
    """Raises RunDataError unless the run was recorded on the examples in these tables (train None: those of a
    stream).
    """
    for name, table in (("train", train), ("test", test)):
        if table is not None and (said := manifest.get("fingerprints", {}).get(name)) != table.fingerprint:
            raise RunDataError(
                f"{folder} was recorded on another {name} table than its set has (fingerprint {said},"
                f" the set's is {table.fingerprint}); runs over other examples need a set of their own"
            )


def _table(batches: list[pa.RecordBatch], folder: Path) -> pa.Table:
    if not batches:
        raise RunDataError(f"{folder}: the run ended before its first losses were recorded")
    return pa.Table.from_batches(batches)


def _run_from_table(
    table: pa.Table, manifest: Mapping[str, Any], current: Status, n_train: int, n_test: int
) -> Run:
    if missing := {*rows.REQUIRED, "loss"} - set(table.column_names):
        raise RunDataError(f"expected the columns {sorted(missing)} too, got {table.column_names}")
    step = table["step"].to_numpy()
    if not np.array_equal(step, np.arange(len(step))):
        raise RunDataError(f"expected the steps 0 .. {len(step) - 1} in order, got {step[:5]} …")
    loss_rows = np.flatnonzero(table["loss"].is_valid().to_numpy())
    metrics = {}
    for name in rows.metric_names(table.schema):
        column = table[name].combine_chunks()
        if not pa.types.is_fixed_size_list(column.type):
            raise RunDataError(f"metric {name!r} must be a fixed-size list [test], got {column.type}")
        if column.type.list_size != n_test:
            raise RunDataError(
                f"metric {name!r} is about {column.type.list_size} test examples,"
                f" but the set's table has {n_test}"
            )
        metrics[name] = column.flatten().to_numpy().reshape(-1, n_test)
    batches = table["batch"].combine_chunks()[1:]
    lengths = batches.value_lengths().to_numpy(zero_copy_only=False)
    trained = lengths > 0
    rates = _floats(table["learning_rate"])[1:]
    group_rates = None
    if rows.GROUP_RATES in table.column_names:
        group_rates = rows.rates_by_group(rates, table[rows.GROUP_RATES].to_pylist()[1:])
    # after a step that changed nothing the losses are those before it
    evaluated, first = np.unique(np.concatenate([[0], np.cumsum(trained)])[loss_rows], return_index=True)
    if len(first) < len(loss_rows):
        metrics = {name: values[first] for name, values in metrics.items()}
    curriculum = Curriculum(
        batches.flatten().to_numpy().astype(np.int64),
        np.concatenate([[0], np.cumsum(lengths[trained])]),
        n_train,
        _amounts(table),
    )
    return Run(
        id=manifest["id"],
        curriculum=curriculum,
        metrics=metrics,
        evaluated=evaluated,
        learning_rate=rates[trained],
        train_loss=_floats(table["train_loss"])[1:][trained],
        group_rates=None if group_rates is None else group_rates[trained],
        status=current,
        seed=manifest.get("seed"),
        optimizer=manifest.get("optimizer") or {},
        config=manifest.get("config") or {},
        environment=manifest.get("environment") or {},
        initial_weights=manifest.get("initial_weights"),
    )


def _amounts(table: pa.Table) -> npt.NDArray[np.float64] | None:
    """How much of each in the batches was consumed, [occurrence]; None for counted examples."""
    if rows.AMOUNTS not in table.column_names:
        return None
    return table[rows.AMOUNTS].combine_chunks()[1:].flatten().to_numpy()


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    return column.cast(pa.float64()).to_numpy()
