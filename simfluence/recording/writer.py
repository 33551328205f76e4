"""The files of one run while it is being recorded: lock, manifest, journal, and what comes of them."""

from __future__ import annotations

import datetime
import itertools
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from simfluence.curriculum import IntArray
from simfluence.errors import RecordingError, RunExistsError
from simfluence.recording import training_state, weights
from simfluence.recording.evaluator import Metrics
from simfluence.recording.stream import StreamTable
from simfluence.recording.subset import Rotation, without_missing
from simfluence.runs import ExampleTable, journal, rows, storage, streams
from simfluence.runs.run import Status


class RunWriter:
    """Writes one run. Every method may raise OSError; what was written before stays intact.

    Parameters
    ----------
    folder : the run's.
    train, test : the set's tables.
    about : further entries of the manifest (seed, configuration, optimizer, …).
    """

    def __init__(
        self, folder: Path, train: ExampleTable | StreamTable, test: ExampleTable, about: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.about = about
        self.steps = 0
        self.trained = 0
        """The steps among these that trained: what a Run counts, and weights are named by."""
        self.nonfinite: dict[str, Any] | None = None
        """Where a test loss was not finite first: step, test, loss."""
        self._train, self._test = train, test
        self._journal: journal.Journal | None = None
        self._streamed: journal.Journal | None = None
        self._rates: list[float | None] = []
        self._group_rates: list[Sequence[float] | None] = []
        self._resumed_at: list[int] = []
        self._lock: filelock.BaseFileLock | None = None
        self._seconds = 0.0  # of earlier attempts
        self._started = self._since = _now()
        self._clock = time.monotonic()

    # ------------------------------------------------------------------------------------ start

    def open(self) -> None:
        """Take the run's lock.

        Raises RunExistsError if another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / storage.LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunExistsError(
                f"run {self.folder.name!r} is being recorded by another process; one run has one writer"
            ) from None
        self._lock = lock

    def resumable_step(self) -> int | None:
        """The last step after which there is a checkpoint, with the journal up to it."""
        for step in training_state.steps(self.folder):
            if self._journalled(step) > step:
                return step
        return None

    def begin(self) -> None:
        """Start the run from its beginning; what there is of an earlier attempt is put aside."""
        set_aside(self.folder)
        self.write_manifest("running", pid=os.getpid(), host=platform.node())

    def start_journal(self, metrics: Metrics) -> None:
        dtypes = {name: values.dtype for name, values in metrics.items()}
        schema = rows.steps_schema(dtypes, len(self._test), group_rates=True)
        if isinstance(self._train, StreamTable):
            self._streamed = journal.Journal(self.folder / streams.JOURNAL, streams.SCHEMA)
        self._journal = journal.Journal(self.folder / storage.JOURNAL, schema)
        self._schema = schema

    def go_on(self, step: int, rotation: Rotation | None = None) -> tuple[Metrics, int]:
        """Cut the journal back to that step, to be continued; returns what was evaluated last, and how many
        evaluations there were.

        Raises RecordingError if the journal does not reach that far.
        """
        if (there := self._journalled(step)) <= step:
            raise RecordingError(
                f"training goes on after step {step}, but of run {self.folder.name!r} there are only"
                f" {max(there - 1, 0)} recorded steps; train from an earlier checkpoint, or pass restart=True"
            )
        manifest = storage.read_manifest(self.folder)
        self._resumed_at = [*manifest.get("resumed_at", []), step]
        self.about["initial_weights"] = manifest.get("initial_weights")  # those before the first attempt
        self._started = manifest.get("started", self._started)
        self._seconds = storage.seconds(self.folder, manifest)
        kept = itertools.islice(journal.read(self.folder / storage.JOURNAL), step + 1)
        first = next(kept)
        self._schema = first.schema
        continued = journal.Journal(self.folder / f"{storage.JOURNAL}.tmp", first.schema)
        metrics: Metrics = {}
        consumed = evaluations = 0
        for number, row in enumerate(itertools.chain([first], kept)):
            continued.append(row)
            batch, rate, group_rates = rows.consumption_of(row)
            self._note(batch, rate, group_rates)
            consumed = max([consumed, *(1 + row for row in batch)])
            if (found := rows.metrics_of(row)) is not None:
                metrics = found
                of = None if rotation is None else rotation.rows(number, evaluations)
                evaluations += 1
                self.note_nonfinite(number, without_missing(found["loss"], of))
        continued.sync()
        continued.move(self.folder / storage.JOURNAL)
        self._journal, self.steps = continued, step
        self._go_on_streaming(consumed)
        self._remove_later_weights()
        self.write_manifest("running", pid=os.getpid(), host=platform.node())
        return metrics, evaluations

    def _go_on_streaming(self, consumed: int) -> None:
        """Cut the training table of a stream back to the examples that the steps before consumed."""
        if not isinstance(self._train, StreamTable):
            return
        self._train.restore(streams.read_table(self.folder).head(consumed))
        continued = journal.Journal(self.folder / f"{streams.JOURNAL}.tmp", streams.SCHEMA)
        if (there := self._train.take_new()) is not None:
            continued.append(there)
        continued.sync()
        continued.move(self.folder / streams.JOURNAL)
        self._streamed = continued

    # ------------------------------------------------------------------------------- step by step

    def append(
        self,
        batch: IntArray,
        learning_rate: float | None,
        train_loss: float | None,
        metrics: Metrics | None,
        group_rates: Sequence[float] | None = None,
    ) -> None:
        """The journal's next entry: the first losses, then one entry a step."""
        assert self._journal is not None
        if isinstance(self._train, StreamTable) and (new := self._train.take_new()) is not None:
            assert self._streamed is not None
            self._streamed.append(new)
        row = rows.step_row(self._schema, self.steps, batch, learning_rate, train_loss, metrics, group_rates)
        self._journal.append(row)
        self._note(batch, learning_rate, group_rates)

    def describe_again(self) -> None:
        """Write the manifest of a run whose description (``about``) has changed."""
        self.write_manifest("running", pid=os.getpid(), host=platform.node())

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Make the run resumable from here; the journal up to here is on the disk first."""
        assert self._journal is not None
        if self._streamed is not None:
            self._streamed.sync()
        self._journal.sync()
        training_state.save(self.folder, self.steps, state)

    def save_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        weights.save_weights(self.folder, self.trained, state)

    def note_nonfinite(self, step: int, losses: np.ndarray) -> bool:
        """Remember the first loss that is not finite. Returns whether these losses have it."""
        bad = np.flatnonzero(~np.isfinite(losses))
        if not bad.size or self.nonfinite is not None:
            return False
        z = int(bad[0])
        self.nonfinite = {"step": step, "test": self._test.ids[z], "loss": str(losses[z])}
        return True

    # -------------------------------------------------------------------------------------- end

    def complete(self) -> None:
        """Journal → Parquet; the manifest says so last."""
        self._close_journal()
        journal_file = self.folder / storage.JOURNAL
        entries = journal.read(journal_file)
        if rows.rates_by_group(self._rates, self._group_rates) is None:
            entries = rows.without_group_rates(entries)
        files = {storage.STEPS: storage.write_steps(self.folder, entries)}
        if isinstance(self._train, StreamTable):
            files[streams.TABLE] = storage.write_streamed(self.folder)
        checkpoints = {
            f"{weights.FOLDER}/{file.name}": storage.file_entry(file)
            for file in sorted((self.folder / weights.FOLDER).glob("*.safetensors"))
        }
        self.write_manifest("complete", files=files, checkpoints=checkpoints)
        journal_file.unlink()
        (self.folder / streams.JOURNAL).unlink(missing_ok=True)
        training_state.remove(self.folder)

    def stop(self, status: Status, error: str) -> None:
        """Leave the run as it is, journal and all."""
        if self._lock is None:
            return  # another process records this run
        self._close_journal()
        self.write_manifest(status, error=error)

    def release(self) -> None:
        self._close_journal()
        if self._lock is not None:
            self._lock.release()

    def write_manifest(self, status: Status, **more: Any) -> None:
        storage.write_manifest(
            self.folder,
            storage.new_manifest(self.folder.name, self._train, self._test)
            | {
                "status": status,
                "started": self._started,
                "since": self._since,
                "ended": None if status == "running" else _now(),
                "seconds": round(self._seconds + time.monotonic() - self._clock, 3),
                "steps": self.steps,
                "resumed_at": self._resumed_at,
                **self.about,
                "nonfinite": self.nonfinite,
                **more,
            },
        )

    def _close_journal(self) -> None:
        for open_file in (self._journal, self._streamed):
            if open_file is not None:
                open_file.close()
        self._journal = self._streamed = None

    def _journalled(self, most: int) -> int:
        """How many entries the journal has (none of those after step ``most`` is looked at)."""
        file = self.folder / storage.JOURNAL
        if not file.is_file():
            return 0
        return sum(1 for _ in itertools.islice(journal.read(file), most + 1))

    def _note(
        self, batch: Sequence[int] | IntArray, rate: float | None, group_rates: Sequence[float] | None
    ) -> None:
        """What the end of the run needs to know of an entry."""
        self.trained += len(batch) > 0
        if len(batch):
            self._rates.append(rate)
            self._group_rates.append(group_rates)

    def _remove_later_weights(self) -> None:
        for later in weights.weight_steps(self.folder):
            if later > self.trained:
                weights.weights_file(self.folder, later).unlink(missing_ok=True)


def set_aside(folder: Path) -> None:
    """Move what an interrupted attempt recorded into attempt-1, attempt-2, …, and delete its weights."""
    if not (folder / storage.JOURNAL).exists():
        return
    training_state.remove(folder)
    shutil.rmtree(folder / weights.FOLDER, ignore_errors=True)
    earlier = [int(old.name.removeprefix("attempt-")) for old in folder.glob("attempt-*[0-9]")]
    attempt = folder / f"attempt-{1 + max(earlier, default=0)}"
    attempt.mkdir()
    if (folder / storage.MANIFEST).exists():
        shutil.copyfile(folder / storage.MANIFEST, attempt / storage.MANIFEST)
    os.replace(folder / storage.JOURNAL, attempt / storage.JOURNAL)
    if (folder / streams.JOURNAL).exists():
        os.replace(folder / streams.JOURNAL, attempt / streams.JOURNAL)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
