"""One run while it is being recorded."""

from __future__ import annotations

import datetime
import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import filelock
import numpy as np
import torch

from simfluence.curriculum import IntArray
from simfluence.errors import RecordingError, RunDataError, RunExistsError
from simfluence.recording.environment import describe_environment, describe_optimizer
from simfluence.recording.evaluator import Evaluator, Metrics
from simfluence.runs import ExampleTable, journal, storage
from simfluence.runs.run import Status


class NonFiniteLossWarning(UserWarning):
    """A test loss became NaN or infinite."""


class ActiveRun:
    """Made by :meth:`RunRecorder.run`; a context manager around the training loop.

    On entering, the losses before the first step are recorded. Leaving it normally completes the run;
    leaving it by an exception keeps all that was recorded and marks the run failed (interrupted, for
    KeyboardInterrupt).
    """

    def __init__(
        self,
        folder: Path,
        train: ExampleTable,
        test: ExampleTable,
        evaluator: Evaluator,
        *,
        model: Any,
        optimizer: torch.optim.Optimizer | None,
        evaluate_every: int,
        nonfinite: Literal["warn", "raise"],
        about: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.losses: Metrics = {}
        """The last evaluation: metric → values [test]."""
        self._train, self._test = train, test
        self._evaluator, self._model, self._optimizer = evaluator, model, optimizer
        self._evaluate_every, self._nonfinite = evaluate_every, nonfinite
        self._about = about
        self._steps = 0
        self._consumed: list[IntArray] = []
        self._rate: float | None = None
        self._first_nonfinite: dict[str, Any] | None = None

    # ------------------------------------------------------------------------- what the user calls

    def consumes(self, example_ids: Iterable[Any]) -> None:
        """Say what a micro-batch holds; the next :meth:`step` takes all that was said since the last."""
        self._consumed.append(self._rows(example_ids))

    def step(
        self,
        example_ids: Iterable[Any] | None = None,
        *,
        train_loss: Any = None,
        learning_rate: float | None = None,
    ) -> None:
        """Record one optimizer step; call it after the step.

        Parameters
        ----------
        example_ids : the ids of the examples of the step's batch (a tensor or a list); may be left out
            after :meth:`consumes`.
        train_loss : the batch's loss, a number or a tensor of one.
        learning_rate : by default what the optimizer used, if it was given.

        Raises
        ------
        RunDataError : no ids, or one that is not in the training table. Nothing recorded is lost.
        """
        if example_ids is not None:
            self.consumes(example_ids)
        batch = np.concatenate(self._consumed) if self._consumed else np.empty(0, np.int64)
        if len(batch) == 0:
            raise RunDataError(
                f"step {self._steps + 1} has no example ids: pass example_ids=, the ids of the examples of"
                " this step's batch"
            )
        self._consumed = []
        self._steps += 1
        due = self._steps % self._evaluate_every == 0
        self._append(
            batch,
            learning_rate if learning_rate is not None else self._rate,
            None if train_loss is None else _number(train_loss),
            evaluate=due,
        )

    # ---------------------------------------------------------------------------- start and end

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self.folder / storage.LOCK, timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RunExistsError(
                f"run {self.folder.name!r} is being recorded by another process; one run has one writer"
            ) from None
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self._journal.close()
            if self._hook is not None:
                self._hook.remove()
            if error is None:
                self._complete()
            else:
                status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                self._write_manifest(status, error=f"{type(error).__name__}: {error}")
        finally:
            self._lock.release()

    def _begin(self) -> None:
        _keep_earlier_attempt(self.folder)
        self._started = _now()
        self._hook = None
        if self._optimizer is not None:
            self._hook = self._optimizer.register_step_pre_hook(self._note_rate)
        self._write_manifest("running", pid=os.getpid(), host=platform.node())
        self.losses = self._evaluator(self._model)
        dtypes = {name: values.dtype for name, values in self.losses.items()}
        self._schema = storage.steps_schema(dtypes, len(self._test))
        self._journal = journal.Journal(self.folder / storage.JOURNAL, self._schema)
        try:
            self._check_finite()
            self._journal.append(storage.step_row(self._schema, 0, [], None, None, self.losses))
        except BaseException:
            self._journal.close()
            raise

    def _complete(self) -> None:
        if self._steps == 0:
            warnings.warn(f"run {self.folder.name!r} ended without a step", stacklevel=3)
        journal_file = self.folder / storage.JOURNAL
        entry = storage.write_steps(self.folder, journal.read(journal_file))
        self._write_manifest("complete", files={storage.STEPS: entry})
        journal_file.unlink()

    # -------------------------------------------------------------------------------- the journal

    def _append(
        self, batch: IntArray, learning_rate: float | None, train_loss: float | None, *, evaluate: bool
    ) -> None:
        if evaluate:
            self.losses = self._evaluator(self._model)
        row = storage.step_row(
            self._schema, self._steps, batch, learning_rate, train_loss, self.losses if evaluate else None
        )
        self._journal.append(row)
        if evaluate:
            self._check_finite()

    def _check_finite(self) -> None:
        losses = self.losses["loss"]
        if np.isfinite(losses).all() or self._first_nonfinite is not None:
            return
        z = int(np.flatnonzero(~np.isfinite(losses))[0])
        self._first_nonfinite = {"step": self._steps, "test": self._test.ids[z], "loss": str(losses[z])}
        message = (
            f"run {self.folder.name!r}: the loss of test example {self._test.ids[z]!r} is {losses[z]} after"
            f" step {self._steps} ({int((~np.isfinite(losses)).sum())} of {len(losses)} are not finite)"
        )
        if self._nonfinite == "raise":
            raise FloatingPointError(message)
        warnings.warn(message + "; recorded as such, said once a run", NonFiniteLossWarning, stacklevel=4)

    def _rows(self, example_ids: Iterable[Any]) -> IntArray:
        if isinstance(example_ids, torch.Tensor):
            example_ids = example_ids.tolist()
        elif isinstance(example_ids, str):
            raise RunDataError(f"expected a list of example ids, got the string {example_ids!r}")
        try:
            return self._train.rows(np.atleast_1d(np.asarray(example_ids)).tolist())
        except RunDataError as error:
            raise RunDataError(f"step {self._steps + 1}: {error}") from None

    def _note_rate(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._rate = float(optimizer.param_groups[0]["lr"])

    def _write_manifest(self, status: Status, **more: Any) -> None:
        manifest = storage.new_manifest(self.folder.name, self._train, self._test) | {
            "status": status,
            "started": self._started,
            "ended": None if status == "running" else _now(),
            "steps": self._steps,
            **self._about,
            "optimizer": describe_optimizer(self._optimizer) if self._optimizer is not None else {},
            "nonfinite": self._first_nonfinite,
            "environment": describe_environment(),
            **more,
        }
        try:
            storage.write_manifest(self.folder, manifest)
        except OSError as error:
            raise RecordingError(f"cannot write to {self.folder}: {error}") from error


def _keep_earlier_attempt(folder: Path) -> None:
    """The journal of an attempt that was cut off stays, under a number."""
    old = folder / storage.JOURNAL
    if old.exists():
        number = 1 + len(list(folder.glob("journal-*.arrow")))
        old.rename(folder / f"journal-{number}.arrow")


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
