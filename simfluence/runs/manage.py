"""Managing recorded runs: list them, show one, verify their files, delete what is no longer needed.

In all functions ``path`` is a run set's folder; in most it may be a folder of such folders (``runs/``).
"""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from simfluence import renamed
from simfluence.errors import RunDataError
from simfluence.runs import journal, rows, storage, streams
from simfluence.runs.run import Run, Status
from simfluence.runs.start import start_alike
from simfluence.runs.tables import ExampleTable


def set_folders(path: str | Path) -> list[Path]:
    """The run sets at a path: the folder itself if it is one, or else those folders in it that are.

    Raises RunDataError if there is none.
    """
    path = Path(path)
    if (path / storage.EXAMPLES).is_file():
        return [path]
    found = [file.parent for file in path.glob(f"*/{storage.EXAMPLES}")]
    if not found:
        raise RunDataError(f"{path} is no run set and holds none: there is no {storage.EXAMPLES}")
    return sorted(found, key=lambda folder: storage.natural_order(folder.name))


# ----------------------------------------------------------------------------------- list, show


def list_sets(path: str | Path) -> pd.DataFrame:
    """A table with one row for each run set.

    Its columns are set (the folder), runs and complete (numbers of runs), train and test (numbers of
    examples), and bytes (on disk).
    """
    found = []
    for folder in set_folders(path):
        train, test = storage.read_tables(folder)
        runs = list_runs(folder)
        complete = int((runs["status"] == "complete").sum())
        n_train = _n_streamed(folder) if train is None else len(train)
        found.append((str(folder), len(runs), complete, n_train, len(test), runs["bytes"].sum()))
    return pd.DataFrame(found, columns=["set", "runs", "complete", "train", "test", "bytes"])


def list_runs(path: str | Path) -> pd.DataFrame:
    """A table with one row for each run.

    Its columns are set, run, status, steps, loss (the mean over test examples at the last evaluation),
    steps_per_second and bytes (on disk). The status of a run that cannot be read is "damaged", and what is
    unknown of it is NaN.
    """
    found = []
    for folder, run_folder in _run_folders(path):
        row: dict[str, Any] = {"set": folder.name, "run": run_folder.name, "bytes": size_on_disk(run_folder)}
        try:
            manifest = storage.read_manifest(run_folder)
            steps, losses = _end_of(run_folder, manifest)
            row |= {"status": storage.status(run_folder), "steps": steps, "loss": finite_mean(losses)}
            seconds = storage.seconds(run_folder, manifest)
            row["steps_per_second"] = steps / seconds if seconds else np.nan
        except RunDataError:
            row |= {"status": "damaged"}
        found.append(row)
    columns = ["set", "run", "status", "steps", "loss", "steps_per_second", "bytes"]
    frame = pd.DataFrame(found, columns=columns)
    return frame.astype({"steps": "Int64", "loss": float, "steps_per_second": float, "bytes": "int64"})


def runs_start_alike(path: str | Path) -> bool | None:
    """Whether the complete runs of a set start from the same weights (as ``RunSet.start_alike``), without
    reading whole runs; None if it is not known. Damaged runs are left out.
    """
    found = []
    for _, folder in _run_folders(path):
        try:
            manifest = storage.read_manifest(folder)
            if storage.status(folder) == "complete":
                _, last = _end_of(folder, manifest)
                found.append((manifest.get("initial_weights"), _first_of(folder), last))
        except RunDataError:
            continue  # list_runs shows it
    weights, firsts, lasts = zip(*found, strict=True) if found else ((), (), ())
    return start_alike(weights, firsts, lasts)


@dataclass(frozen=True)
class RunSummary:
    """One run, as far as it was recorded, and what its manifest says."""

    run: Run
    status: Status
    manifest: dict[str, Any]
    interrupted_after: int | None
    """The last recorded step, if the run is not complete."""
    resumable_after: int | None
    """The step after which ``resume=True`` would continue; None if the run cannot be resumed."""

    @property
    def mean_loss(self) -> npt.NDArray[np.float64]:
        """float [evaluated step]: the mean over test examples whose loss is finite."""
        return np.array([finite_mean(values) for values in self.run.loss])

    def __str__(self) -> str:
        lines = [f"{self.run.id}: {self.status}, {len(self.run)} steps"]
        if self.interrupted_after is not None:
            can = "cannot be resumed" if self.resumable_after is None else ""
            lines.append(
                f"stopped after step {self.interrupted_after}; "
                + (can or f"can be resumed after step {self.resumable_after}")
            )
        if error := self.manifest.get("error"):
            lines.append(f"error: {error}")
        if resumed := self.manifest.get("resumed_at"):
            lines.append(f"resumed after steps {', '.join(map(str, resumed))}")
        if bad := self.manifest.get("nonfinite"):
            lines.append(
                f"first loss that is not finite: {bad['loss']} of {bad['test']!r}, step {bad['step']}"
            )
        evaluated, losses = self.run.evaluated, self.mean_loss
        lines.append(
            f"mean test loss {losses[0]:.4f} at step {evaluated[0]}, {losses[-1]:.4f} at {evaluated[-1]}"
        )
        return "\n".join(lines)


def show(path: str | Path, run_id: str) -> RunSummary:
    """A summary of one run of a set. Raises RunDataError if it is damaged or missing."""
    path = Path(path)
    train, test = storage.read_tables(path)
    folder = path / storage.check_run_id(run_id)
    if not folder.is_dir():
        raise RunDataError(f"{path} has no run {run_id!r}; there are {', '.join(storage.run_ids(path))}")
    manifest, status = storage.read_manifest(folder), storage.status(folder)
    run = storage.read_run(folder, None if train is None else len(train), len(test))
    recorded, _ = _end_of(folder, manifest)  # with steps that did not train, which a Run leaves out
    steps = [int(place.name.removeprefix("step-")) for place in folder.glob("resume/step-*[0-9]")]
    resumable = max((step for step in steps if step <= recorded), default=None)
    return RunSummary(run, status, manifest, None if status == "complete" else recorded, resumable)


def test_groups(path: str | Path) -> list[str]:
    """The groups of a set's test examples, [test]."""
    return list(storage.read_tables(Path(path))[1].groups)


# --------------------------------------------------------------------------------------- verify


def verify(path: str | Path) -> pd.DataFrame:
    """Check the checksums and the contents of all files of all runs.

    Returns a table with one row for each problem (set, run, file, problem). It is empty if everything is as
    it was recorded.
    """
    problems = []
    for folder in set_folders(path):
        try:
            train, test = storage.read_tables(folder)
        except RunDataError as error:
            problems.append((folder.name, "", storage.EXAMPLES, str(error)))
            continue
        for run_id in _names(folder):
            for file, problem in _problems_of(folder / run_id, train, test):
                problems.append((folder.name, run_id, file, problem))
    return pd.DataFrame(problems, columns=["set", "run", "file", "problem"])


def _problems_of(folder: Path, train: ExampleTable | None, test: ExampleTable) -> Iterator[tuple[str, str]]:
    try:
        manifest = storage.read_manifest(folder)
        storage.check_tables(folder, manifest, train, test)
    except RunDataError as error:
        yield storage.MANIFEST, str(error)
        return
    listed = {**manifest.get("files", {}), **manifest.get("checkpoints", {})}
    sound = True
    for name, expected in listed.items():
        try:
            storage.check_file(folder, name, expected)
        except RunDataError as error:
            sound = False
            yield name, str(error)
    if sound and storage.status(folder) != "running":
        try:
            storage.read_run(folder, None if train is None else len(train), len(test), verify=False)
        except RunDataError as error:
            yield storage.STEPS if manifest.get("files") else storage.JOURNAL, str(error)
    there = {file.relative_to(folder).as_posix() for file in folder.glob("checkpoints/*.safetensors")}
    if manifest["status"] == "complete":
        for name in sorted(there - set(listed)):
            yield name, f"{folder / name} is not in the manifest"


# ---------------------------------------------------------------------------------------- prune


@renamed.refuse_old(renamed.PRUNING)
def prune(
    path: str | Path,
    *,
    attempts: bool = True,
    failed: bool = False,
    weights: bool = False,
    dry_run: bool = True,
) -> pd.DataFrame:
    """Delete files that are no longer needed. Runs that are being recorded are left alone.

    Parameters
    ----------
    attempts : delete what was kept of attempts before a restart, and what unfinished writes left behind.
    failed : delete failed and interrupted runs.
    weights : delete the weights that complete runs kept for attribution (``keep_weights``).
    dry_run : delete nothing, only return what would be deleted.

    Returns a table with one row for each file or folder: set, run, what, path, bytes.
    """
    found = []
    for folder, run_folder in _run_folders(path):
        try:
            status = storage.status(run_folder)
        except RunDataError:
            continue  # damaged: for a person to decide
        if status == "running":
            continue
        for what, target in _superfluous(run_folder, status, attempts, failed, weights):
            found.append((folder.name, run_folder.name, what, str(target), size_on_disk(target)))
            if not dry_run:
                _delete(run_folder, what, target)
    return pd.DataFrame(found, columns=["set", "run", "what", "path", "bytes"])


def _superfluous(
    folder: Path, status: Status, attempts: bool, failed: bool, weights: bool
) -> Iterator[tuple[str, Path]]:
    if failed and status in ("failed", "interrupted"):
        yield f"{status} run", folder
        return
    if attempts:
        for attempt in sorted(folder.glob("attempt-*")):
            yield "earlier attempt", attempt
        for leftover in sorted(folder.rglob("*.tmp")):
            yield "unfinished write", leftover
        if status == "complete":
            for name in (
                storage.JOURNAL,
                streams.JOURNAL,
                "resume",
            ):  # killed between the manifest and the cleaning up
                if (folder / name).exists():
                    yield "leftover", folder / name
    if weights and status == "complete" and (folder / "checkpoints").exists():
        yield "weights", folder / "checkpoints"


def _delete(folder: Path, what: str, target: Path) -> None:
    if what == "weights":  # the manifest first: what it lists must be there
        storage.write_manifest(folder, storage.read_manifest(folder) | {"checkpoints": {}})
    if what.endswith("run"):  # no longer a run, should this be cut off
        (target / storage.MANIFEST).unlink()
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()


# ---------------------------------------------------------------------------------------- pieces


def _n_streamed(folder: Path) -> int:
    """How many training examples of a stream are known; 0 before the first step, or if tables are damaged."""
    try:
        return len(storage.read_examples(folder)[0])
    except RunDataError:
        return 0


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum((Path(top) / name).stat().st_size for top, _, names in os.walk(path) for name in names)


def _names(folder: Path) -> list[str]:
    """The names of all folders in a set that hold a run, or should."""
    marks = (storage.MANIFEST, storage.STEPS, storage.JOURNAL)
    found = {file.parent.name for mark in marks for file in folder.glob(f"*/{mark}")}
    return sorted(found, key=storage.natural_order)


def _run_folders(path: str | Path) -> Iterator[tuple[Path, Path]]:
    for folder in set_folders(path):
        for name in _names(folder):
            yield folder, folder / name


def _end_of(folder: Path, manifest: dict[str, Any]) -> tuple[int, npt.NDArray[np.floating]]:
    """The number of steps and the last losses [test], without reading the whole run."""
    if not manifest.get("files"):
        last: collections.deque[Any] = collections.deque(maxlen=1)
        entries = 0
        for row in journal.read(folder / storage.JOURNAL):
            entries += 1
            if (metrics := rows.metrics_of(row)) is not None:
                last.append(metrics["loss"])
        return max(entries - 1, 0), last[0] if last else np.empty(0)
    try:
        with pq.ParquetFile(folder / storage.STEPS) as file:
            for group in reversed(range(file.num_row_groups)):
                losses = file.read_row_group(group, columns=["loss"])["loss"].drop_null()
                if len(losses):
                    return file.metadata.num_rows - 1, losses.combine_chunks()[-1:].flatten().to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise RunDataError(f"{folder / storage.STEPS} is damaged: {error}") from error
    raise RunDataError(f"{folder / storage.STEPS} holds no losses")


def _first_of(folder: Path) -> npt.NDArray[np.floating] | None:
    """The losses before the first step of a complete run; None if they were not evaluated."""
    try:
        with pq.ParquetFile(folder / storage.STEPS) as file:
            losses = file.read_row_group(0, columns=["loss"])["loss"]
            return losses.combine_chunks()[:1].flatten().to_numpy() if losses[0].is_valid else None
    except (OSError, ValueError, KeyError) as error:
        raise RunDataError(f"{folder / storage.STEPS} is damaged: {error}") from error


def last_mean_loss(folder: Path, manifest: dict[str, Any]) -> float:
    """Of a run in this folder: the mean loss at the last evaluation."""
    return finite_mean(_end_of(folder, manifest)[1])


def finite_mean(losses: npt.NDArray[np.floating]) -> float:
    """The mean of what is finite; NaN if nothing is."""
    finite = losses[np.isfinite(losses)]
    return float(finite.mean()) if finite.size else float("nan")
