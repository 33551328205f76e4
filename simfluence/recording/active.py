"""One run while it is being recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError

from simfluence.curriculum import IntArray
from simfluence.errors import RecordingError, RunDataError
from simfluence.recording import training_state
from simfluence.recording.budget import Budget
from simfluence.recording.consumption import NOTHING, Consumption, Step, whole_step
from simfluence.recording.environment import describe_environment, describe_optimizers
from simfluence.recording.evaluator import Evaluate, Metrics
from simfluence.recording.fingerprint import weights_fingerprint
from simfluence.recording.mirror import Mirror
from simfluence.recording.notices import (
    NonFiniteLossWarning,
    RecordingStoppedWarning,
    describe_nonfinite,
    warn_of_few_evaluations,
    warn_of_incomplete,
    warn_of_untrained,
)
from simfluence.recording.processes import Processes
from simfluence.recording.schedule import Schedule
from simfluence.recording.stream import StreamTable
from simfluence.recording.subset import Rotation, without_missing
from simfluence.recording.watch import OptimizerWatch
from simfluence.recording.weights import WeightKeeper
from simfluence.recording.wrappers import evaluated_model, plain_model
from simfluence.recording.writer import RunWriter
from simfluence.runs import ExampleTable
from simfluence.runs.run import FEW_EVALUATIONS, Status


class ActiveRun:
    """Made by :meth:`RunRecorder.run`; a context manager around the training loop.

    On entering, the losses before the first step are recorded (or the state of a resumed run is put
    back). Leaving it normally completes the run; leaving it by an exception keeps all that was recorded
    and marks the run failed (interrupted, for KeyboardInterrupt and SystemExit). A run that is left without a
    step, or with fewer than ``total_steps`` (see :meth:`ends_early`), is interrupted, not complete.
    """

    def __init__(
        self,
        folder: Path,
        train: ExampleTable | StreamTable,
        test: ExampleTable,
        evaluator: Evaluate,
        *,
        model: Any,
        optimizers: Sequence[torch.optim.Optimizer],
        total_steps: int | None,
        evaluate_at: Schedule,
        rotation: Rotation | None = None,
        weights_at: Schedule,
        resume_every: int | None,
        state: Mapping[str, Any],
        resume: bool | int,
        nonfinite: Literal["warn", "raise"],
        on_error: Literal["raise", "continue"],
        about: Mapping[str, Any],
        mirror: Mirror,
        recording: bool = True,
    ) -> None:
        self.folder = folder
        self.losses: Metrics = {}
        """The last evaluation: metric → values [test], NaN of those left out (``evaluate_subset``)."""
        self.start = 0
        """The steps taken already when the run was entered: 0, but for a resumed run."""
        self.steps = 0
        """The steps taken so far, those that changed nothing among them."""
        self._train, self._test = train, test
        self._evaluator, self._model = evaluator, model
        self._watch = OptimizerWatch(optimizers, plain_model(model))
        self._total_steps = total_steps
        self._evaluate_at, self._rotation = evaluate_at, rotation
        self._evaluations = 0  # so far
        self._evaluated_rows: IntArray | None = None  # at the last of them; None: all
        self._weights = WeightKeeper(weights_at, model, self._watch)
        self._resume_every, self._state = resume_every, state
        self._resume, self._nonfinite, self._on_error = resume, nonfinite, on_error
        self._about, self._mirror = dict(about), mirror
        self._recording = recording
        self._fault: RecordingError | None = None
        self._phase: Literal["not entered", "entered", "ended"] = "not entered"
        self._ends_early = False
        self._consumption = Consumption(train, self._watch)
        self._n_groups = len(self._watch.groups)
        self._rates_differ = False
        self._warned_of_nonfinite = self._warned_of_untrained = False

    # ------------------------------------------------------------------------- what the user calls

    @property
    def recording(self) -> bool:
        """False once recording had to stop and training was to go on (``on_error="continue"``)."""
        return self._recording and self._fault is None

    def consumes(self, example_ids: Iterable[Any]) -> None:
        """Name the examples of a micro-batch; the next :meth:`step` records all named since the last."""
        if self._recording:
            self._check_entered()
            try:
                self._consumption.add(example_ids)
            except RunDataError as error:
                raise RunDataError(f"step {self.steps + 1}: {error}") from None

    def discards(self) -> None:
        """Forget what :meth:`consumes` named since the last step: its gradients were thrown away."""
        self._consumption.clear()

    def ends_early(self) -> None:
        """Say that training is over, though it had fewer steps than ``total_steps`` (early stopping).

        The run is complete then, if it had a step.
        """
        self._ends_early = True

    def step(
        self,
        example_ids: Iterable[Any] | None = None,
        *,
        train_loss: Any = None,
        learning_rate: float | None = None,
    ) -> None:
        """Record one optimizer step (in data-parallel training, call it in each process).

        Call it last, after the optimizer and the scheduler have stepped: a resumable checkpoint holds the
        state as it is then. The learning rates recorded are those that the optimizers used. Where none of
        them changed a weight since the last call (a gradient scaler skipped the update, or it was left out),
        the step is recorded with the learning rate 0 and no examples; an UntrainedStepWarning says so once.

        Parameters
        ----------
        example_ids : the ids of the examples of the step's batch (a tensor or a list), this process's
            share of them; of a stream, the examples themselves (a list of rows, texts or token ids, or a
            batch as data loaders collate it). May be left out after :meth:`consumes`.
        train_loss : the batch's loss, a number or a tensor of one; the mean over processes is kept.
        learning_rate : by default what the optimizer used, if it was given.

        Raises
        ------
        RunDataError : no ids, or one that is not in the training table. Nothing recorded is lost.
        ValueError : a loss or rate that is not a number. The step is not counted.
        RecordingError : the run cannot be written any more, unless training is to go on then; or it has not
            been entered by ``with``, or has ended.

        Whatever the loss function raises is raised here; the step is then recorded unevaluated.
        """
        if not self._recording:
            return
        self._check_entered()
        step = self._gathered(example_ids, train_loss, learning_rate)
        if step is None:
            return
        self.steps += 1
        self._writer.steps = self.steps
        losses: Metrics | None = None
        try:
            if self._evaluate_at(self.steps):
                losses = self._evaluate()
        finally:  # the step was taken, whatever became of its evaluation
            self._record(step, losses)
        if losses is not None:
            self.losses = losses
            self._check_finite()

    # ---------------------------------------------------------------------------- start and end

    def __enter__(self) -> Self:
        if self._phase != "not entered":
            raise RecordingError(f"run {self.folder.name!r} {self._phase} already; make another by run()")
        self._processes = Processes.current()
        self._writer = RunWriter(self.folder, self._train, self._test, self._description())
        self._phase = "entered"
        if not self._recording:
            return self
        try:
            self._begin()
        except BaseException:
            self._watch.end()
            self._writer.release()
            self._phase = "ended"
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._watch.end()
        self._phase = "ended"
        try:
            if not self._recording:
                return
            if error is not None:
                self._stop(error)
            elif shortfall := self._shortfall():
                self._end_as("interrupted", shortfall)
                if self._processes.is_writer:
                    warn_of_incomplete(self.folder.name, shortfall)
            else:
                self._write(self._writer.complete)
                self._act_on_fault()
                self._warn_of_few_evaluations()
        finally:
            self._writer.release()
            self._mirror.end(complete=error is None and self._shortfall() is None)

    def _warn_of_few_evaluations(self) -> None:
        few = self._evaluations < min(FEW_EVALUATIONS, self.steps)
        if few and isinstance(self._evaluate_at, Budget) and self._processes.is_writer:
            warn_of_few_evaluations(self.folder.name, self._evaluations, self._evaluate_at.share)

    def _shortfall(self) -> str | None:
        """What the run lacks to be complete."""
        if self.steps == 0:
            return "ended without a step"
        if self._total_steps is None or self._ends_early or self.steps >= self._total_steps:
            return None
        return (
            f"ended after {self.steps} of {self._total_steps} steps; if training was to end there, call"
            " run.ends_early() before"
        )

    def _begin(self) -> None:
        """Open the run on the writing process; continue after its last checkpoint, or evaluate step 0."""
        go_on_after = self._processes.from_writer(self._open)
        self._fault = self._processes.from_writer(lambda: self._fault)
        self._act_on_fault()
        if not self._recording:
            return
        self._weights.note()
        if go_on_after is None:
            try:
                self.losses = self._evaluate()
            except BaseException as error:
                self._stop(error)
                raise
            self._write(lambda: self._writer.start_journal(self.losses))
            self._write(lambda: self._writer.append(NOTHING, None, None, self.losses))
            self._keep_weights()
            self._check_finite()
        else:
            if self._resume is True:
                self._restore(go_on_after)  # before the journal is cut, should this fail
            self.start = self.steps = go_on_after
            self.losses, self._evaluations = self._processes.from_writer(lambda: self._go_on(go_on_after))
            earlier = self._processes.from_writer(lambda: self._weights.names_in(self.folder))
            self._weights.trained |= earlier
            self._warned_of_nonfinite = self._writer.nonfinite is not None
        self._watch.start()
        if self._processes.is_writer:
            self._mirror.begin(self.start, self.losses)

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

    def _go_on(self, step: int) -> tuple[Metrics, int]:
        try:
            return self._writer.go_on(step, self._rotation)
        except OSError as error:
            raise RecordingError(f"cannot resume run {self.folder.name!r}: {error}") from error

    def _restore(self, step: int) -> None:
        saved = training_state.load(self.folder, step)
        if len(saved["random"]) != self._processes.size:
            raise RecordingError(
                f"run {self.folder.name!r} was recorded by {len(saved['random'])} processes and cannot go on"
                f" with {self._processes.size}; start as many, or pass restart=True"
            )
        self._weights.trained.update(saved.get("trained", []))
        training_state.restore(self._state, saved["objects"])
        training_state.set_random_states(saved["random"][self._processes.rank])

    # ------------------------------------------------------------------------------- the parts of a step

    def _gathered(
        self, example_ids: Iterable[Any] | None, train_loss: Any, learning_rate: Any
    ) -> Step | None:
        """The step of all processes; an error in one is raised in all. None if recording had to stop."""
        share: Step | None = None
        error: ValueError | None = None
        try:
            share = self._consumption.take(example_ids, train_loss, learning_rate)
        except ValueError as found:
            kind = RunDataError if isinstance(found, RunDataError) else ValueError
            error = kind(f"step {self.steps + 1}: {found}")
        gathered = self._processes.gather((share, error, self._fault))
        self._fault = next((fault for *_, fault in gathered if fault is not None), None)
        self._act_on_fault()
        for _, someones_error, _ in gathered:
            if someones_error is not None:
                raise someones_error
        if not self._recording:
            return None
        step = whole_step([one for one, *_ in gathered if one is not None])
        if isinstance(stream := self._train, StreamTable):
            batch = self._processes.from_writer(lambda: stream.numbered(step.batch))
            step = dataclasses.replace(step, batch=batch)
        if not step.trained and self._processes.is_writer and not self._warned_of_untrained:
            self._warned_of_untrained = True
            warn_of_untrained(self.folder.name, self.steps + 1)
        return step

    def _note_groups(self, rates: tuple[float, ...]) -> None:
        """Describe the parameter groups when one is added, or when their rates first differ."""
        differ = len({rate for rate in rates if not np.isnan(rate)}) > 1
        added = len(rates) > self._n_groups
        if added or (differ and not self._rates_differ):
            self._rates_differ, self._n_groups = True, len(rates)
            self._writer.about["optimizer"] = self._described_optimizer()
            self._write(self._writer.describe_again)

    def _record(self, step: Step, losses: Metrics | None) -> None:
        self._note_groups(step.group_rates)
        rates = step.group_rates if len(step.group_rates) > 1 else None
        self._weights.note()
        self._write(
            lambda: self._writer.append(step.batch, step.learning_rate, step.train_loss, losses, rates)
        )
        self._mirror.step(self.steps, losses, step.train_loss, step.learning_rate)
        self._keep_weights()
        if self._resume_every and self.steps % self._resume_every == 0:
            self._save_state()

    def _evaluate(self) -> Metrics:
        rows = None if self._rotation is None else self._rotation.rows(self.steps, self._evaluations)
        found = self._evaluator(evaluated_model(self._model), self._processes, rows)
        self._evaluations, self._evaluated_rows = self._evaluations + 1, rows
        if self.losses and set(found) != set(self.losses):
            raise ValueError(
                f"the loss function returned {sorted(found)}, but at first {sorted(self.losses)}"
            )
        return found

    def _keep_weights(self) -> None:
        if self._weights.due(self.steps):
            state = self._weights.state()
            self._write(lambda: self._writer.save_weights(state))

    def _save_state(self) -> None:
        random = self._processes.gather(training_state.random_states())
        self._write(
            lambda: self._writer.save_state(
                {
                    "objects": training_state.capture(self._state),
                    "random": random,
                    "trained": sorted(self._weights.trained),
                }
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
        self._watch.end()
        if self._processes.is_writer:
            self._stop(self._fault)
            message = f"{self._fault}; training goes on without recording"
            warnings.warn(message, RecordingStoppedWarning, stacklevel=4)

    def _stop(self, error: BaseException) -> None:
        cut_off = isinstance(error, KeyboardInterrupt | SystemExit)
        self._end_as("interrupted" if cut_off else "failed", f"{type(error).__name__}: {error}")

    def _end_as(self, status: Status, why: str) -> None:
        if self._processes.is_writer:
            with contextlib.suppress(OSError):  # the error itself says more than this one would
                self._writer.stop(status, why)

    def _check_entered(self) -> None:
        if self._phase == "not entered":
            raise RecordingError(f"run {self.folder.name!r} has not begun: use it in a with statement")
        if self._phase == "ended":
            raise RecordingError(f"run {self.folder.name!r} has ended: its with statement was left")

    def _check_finite(self) -> None:
        losses = without_missing(self.losses["loss"], self._evaluated_rows)
        self._writer.note_nonfinite(self.steps, losses)
        if self._warned_of_nonfinite or np.isfinite(losses).all():
            return
        message = describe_nonfinite(self.folder.name, self.steps, self._test.ids, losses)
        self._warned_of_nonfinite = True
        if self._nonfinite == "raise":
            raise FloatingPointError(message)
        if self._processes.is_writer:
            warnings.warn(message + "; recorded as such, said once a run", NonFiniteLossWarning, stacklevel=3)

    def _description(self) -> dict[str, Any]:
        return {
            **self._about,
            "total_steps": self._total_steps,
            "optimizer": self._described_optimizer(),
            "environment": describe_environment(plain_model(self._model)),
            "initial_weights": weights_fingerprint(self._model, self._processes) if self._recording else None,
        }

    @property
    def optimizer(self) -> dict[str, Any]:
        """The optimizer as it is recorded (``Run.optimizer``)."""
        return self._described_optimizer()

    def _described_optimizer(self) -> dict[str, Any]:
        return describe_optimizers(self._watch, self._rates_differ)
