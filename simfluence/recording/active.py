"""One run while it is being recorded."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.hooks import RemovableHandle

from simfluence.curriculum import IntArray
from simfluence.errors import RecordingError, RunDataError
from simfluence.recording import training_state
from simfluence.recording.environment import describe_environment, describe_optimizer, innermost
from simfluence.recording.evaluator import Evaluator, Metrics
from simfluence.recording.processes import Processes, unwrapped
from simfluence.recording.schedule import Schedule
from simfluence.recording.writer import RunWriter
from simfluence.runs import ExampleTable
from simfluence.runs.run import Status


class NonFiniteLossWarning(UserWarning):
    """A test loss became NaN or infinite."""


class RecordingStoppedWarning(UserWarning):
    """Recording could not go on; training does, unrecorded."""


class ActiveRun:
    """Made by :meth:`RunRecorder.run`; a context manager around the training loop.

    On entering, the losses before the first step are recorded (or the state of a resumed run is put
    back). Leaving it normally completes the run; leaving it by an exception keeps all that was recorded
    and marks the run failed (interrupted, for KeyboardInterrupt and SystemExit).
    """

    def __init__(
        self,
        folder: Path,
        train: ExampleTable,
        test: ExampleTable,
        evaluator: Evaluator,
        *,
        model: Any,
        optimizer: Any,
        evaluate_at: Schedule,
        weights_at: Schedule,
        resume_every: int | None,
        state: Mapping[str, Any],
        resume: bool | int,
        nonfinite: Literal["warn", "raise"],
        on_error: Literal["raise", "continue"],
        about: Mapping[str, Any],
        recording: bool = True,
    ) -> None:
        self.folder = folder
        self.losses: Metrics = {}
        """The last evaluation: metric → values [test]."""
        self.start = 0
        """The steps taken already when the run was entered: 0, but for a resumed run."""
        self.steps = 0
        """The steps taken so far."""
        self._train, self._test = train, test
        self._evaluator, self._model = evaluator, model
        self._optimizer = innermost(optimizer)
        self._evaluate_at, self._weights_at = evaluate_at, weights_at
        self._resume_every, self._state = resume_every, state
        self._resume, self._nonfinite, self._on_error = resume, nonfinite, on_error
        self._about = dict(about)
        self._recording = recording
        self._fault: RecordingError | None = None
        self._consumed: list[IntArray] = []
        self._rate: float | None = None
        self._warned = False

    # ------------------------------------------------------------------------- what the user calls

    @property
    def recording(self) -> bool:
        """False once recording had to stop and training was to go on (``on_error="continue"``)."""
        return self._recording and self._fault is None

    def consumes(self, example_ids: Iterable[Any]) -> None:
        """Name the examples of a micro-batch; the next :meth:`step` records all named since the last."""
        if self._recording:
            self._consumed.append(self._rows(example_ids))

    def step(
        self,
        example_ids: Iterable[Any] | None = None,
        *,
        train_loss: Any = None,
        learning_rate: float | None = None,
    ) -> None:
        """Record one optimizer step (in data-parallel training, call it in each process).

        Call it last, after the optimizer and the scheduler have stepped: a resumable checkpoint holds the
        state as it is then. The learning rate recorded is the one that the optimizer used.

        Parameters
        ----------
        example_ids : the ids of the examples of the step's batch (a tensor or a list), this process's
            share of them; may be left out after :meth:`consumes`.
        train_loss : the batch's loss, a number or a tensor of one; the mean over processes is kept.
        learning_rate : by default what the optimizer used, if it was given.

        Raises
        ------
        RunDataError : no ids, or one that is not in the training table. Nothing recorded is lost.
        RecordingError : the run cannot be written any more, unless training is to go on then.
        """
        if not self._recording:
            return
        batch, loss = self._everyones_share(example_ids, train_loss)
        if not self._recording:
            return
        self.steps += 1
        self._writer.steps = self.steps
        evaluate = self._evaluate_at(self.steps)
        if evaluate:
            self.losses = self._evaluate()
        rate = learning_rate if learning_rate is not None else self._rate
        self._write(lambda: self._writer.append(batch, rate, loss, self.losses if evaluate else None))
        self._keep_weights()
        if self._resume_every and self.steps % self._resume_every == 0:
            self._save_state()
        if evaluate:
            self._check_finite()

    # ---------------------------------------------------------------------------- start and end

    def __enter__(self) -> Self:
        self._processes = Processes.current()
        self._hook: RemovableHandle | None = None
        self._writer = RunWriter(self.folder, self._train, self._test, self._description())
        if not self._recording:
            return self
        try:
            self._begin()
        except BaseException:
            self._end_hook()
            self._writer.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end_hook()
        if not self._recording:
            self._writer.release()
            return
        try:
            if error is None:
                if self.steps == 0:
                    warnings.warn(f"run {self.folder.name!r} ended without a step", stacklevel=2)
                self._write(self._writer.complete)
                self._act_on_fault()
            elif self._processes.is_writer:
                cut_off = isinstance(error, KeyboardInterrupt | SystemExit)
                self._stop("interrupted" if cut_off else "failed", error)
        finally:
            self._writer.release()

    def _begin(self) -> None:
        """Open the run on the writing process; continue after its last checkpoint, or evaluate step 0."""
        if self._optimizer is not None:
            self._hook = self._optimizer.register_step_pre_hook(self._note_rate)
        go_on_after = self._processes.from_writer(self._open)
        self._fault = self._processes.from_writer(lambda: self._fault)
        self._act_on_fault()
        if not self._recording:
            return
        if go_on_after is None:
            self.losses = self._evaluate()
            self._write(lambda: self._writer.start_journal(self.losses))
            self._write(lambda: self._writer.append(np.empty(0, np.int64), None, None, self.losses))
            self._keep_weights()
            self._check_finite()
        else:
            if self._resume is True:
                self._restore(go_on_after)  # before the journal is cut, should this fail
            self.start = self.steps = go_on_after
            self.losses = self._processes.from_writer(lambda: self._go_on(go_on_after))
            self._warned = self._writer.nonfinite is not None

    def _open(self) -> int | None:
        """The step to go on after, None for a run from its beginning. Runs on the writing process."""
        found: int | None = None

        def open_it() -> None:
            nonlocal found
            self._writer.open()
            found = self._writer.resumable_step() if self._resume is True else (self._resume or None)
            if found is None:
                self._writer.begin()

        try:
            self._write(open_it)
        except RecordingError:
            if self._fault is None:
                raise  # the run is not ours to record, however the user takes faults
        return found

    def _go_on(self, step: int) -> Metrics:
        try:
            return self._writer.go_on(step)
        except OSError as error:
            raise RecordingError(f"cannot resume run {self.folder.name!r}: {error}") from error

    def _restore(self, step: int) -> None:
        saved = training_state.load(self.folder, step)
        if len(saved["random"]) != self._processes.size:
            raise RecordingError(
                f"run {self.folder.name!r} was recorded by {len(saved['random'])} processes and cannot go on"
                f" with {self._processes.size}; start as many, or pass restart=True"
            )
        training_state.restore(self._state, saved["objects"])
        training_state.set_random_states(saved["random"][self._processes.rank])

    # ------------------------------------------------------------------------------- the parts of a step

    def _everyones_share(
        self, example_ids: Iterable[Any] | None, train_loss: Any
    ) -> tuple[IntArray, float | None]:
        """The whole batch, process after process, and its mean loss; an error in one is raised in all."""
        error: RunDataError | None = None
        try:
            if example_ids is not None:
                self.consumes(example_ids)
        except RunDataError as found:
            error = found
        share = np.concatenate(self._consumed) if self._consumed else np.empty(0, np.int64)
        self._consumed = []
        if error is None and len(share) == 0:
            error = RunDataError(
                f"step {self.steps + 1} has no example ids: pass example_ids=, the ids of the examples of"
                " this step's batch"
            )
        loss = None if train_loss is None else _number(train_loss)
        gathered = self._processes.gather((share, loss, error, self._fault))
        self._fault = next((fault for *_, fault in gathered if fault is not None), None)
        self._act_on_fault()
        for _, _, someones_error, _ in gathered:
            if someones_error is not None:
                raise someones_error
        losses = [value for _, value, _, _ in gathered if value is not None]
        return np.concatenate([share for share, *_ in gathered]), float(np.mean(losses)) if losses else None

    def _evaluate(self) -> Metrics:
        return self._evaluator(unwrapped(self._model), self._processes)

    def _keep_weights(self) -> None:
        if self._weights_at(self.steps):
            model = unwrapped(self._model)
            if not isinstance(model, nn.Module):
                raise TypeError(f"keep_weights needs a torch module, got {type(model).__name__}")
            self._write(lambda: self._writer.save_weights(model))

    def _save_state(self) -> None:
        random = self._processes.gather(training_state.random_states())
        self._write(
            lambda: self._writer.save_state(
                {"objects": training_state.capture(self._state), "random": random}
            )
        )

    def _write(self, action: Callable[[], None]) -> None:
        """Run the action on the writing process; a fault is raised or ends the recording, see on_error."""
        if not self._processes.is_writer or not self.recording:
            return
        try:
            action()
        except (OSError, pa.ArrowException, SafetensorError) as error:
            self._fault = RecordingError(
                f"cannot write run {self.folder.name!r} into {self.folder.parent}: {error}; what was recorded"
                f" up to step {self.steps} is as it was"
            )
            self._fault.__cause__ = error
            if self._processes.size == 1:  # else the next step tells all processes
                self._act_on_fault()

    def _act_on_fault(self) -> None:
        """If the run cannot be written any more, raise the error, or warn and end the recording."""
        if self._fault is None or not self._recording:
            return
        if self._on_error == "raise":
            raise self._fault
        self._recording = False
        self._end_hook()
        if self._processes.is_writer:
            self._stop("failed", self._fault)
            message = f"{self._fault}; training goes on without recording"
            warnings.warn(message, RecordingStoppedWarning, stacklevel=4)

    def _stop(self, status: Status, error: BaseException) -> None:
        with contextlib.suppress(OSError):  # the error itself says more than this one would
            self._writer.stop(status, f"{type(error).__name__}: {error}")

    def _check_finite(self) -> None:
        losses = self.losses["loss"]
        self._writer.note_nonfinite(self.steps, losses)
        if self._warned or np.isfinite(losses).all():
            return
        self._warned = True
        z = int(np.flatnonzero(~np.isfinite(losses))[0])
        message = (
            f"run {self.folder.name!r}: the loss of test example {self._test.ids[z]!r} is {losses[z]} after"
            f" step {self.steps} ({int((~np.isfinite(losses)).sum())} of {len(losses)} are not finite)"
        )
        if self._nonfinite == "raise":
            raise FloatingPointError(message)
        if self._processes.is_writer:
            warnings.warn(message + "; recorded as such, said once a run", NonFiniteLossWarning, stacklevel=3)

    def _rows(self, example_ids: Iterable[Any]) -> IntArray:
        if isinstance(example_ids, torch.Tensor):
            example_ids = example_ids.tolist()
        elif isinstance(example_ids, str):
            raise RunDataError(f"expected a list of example ids, got the string {example_ids!r}")
        try:
            return self._train.rows(np.atleast_1d(np.asarray(example_ids)).tolist())
        except RunDataError as error:
            raise RunDataError(f"step {self.steps + 1}: {error}") from None

    def _description(self) -> dict[str, Any]:
        optimizer = describe_optimizer(self._optimizer) if self._optimizer is not None else {}
        return {
            **self._about,
            "optimizer": optimizer,
            "environment": describe_environment(unwrapped(self._model)),
        }

    def _note_rate(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._rate = float(optimizer.param_groups[0]["lr"])

    def _end_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, torch.Tensor) else value)
