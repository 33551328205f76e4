"""The run logger: one line around a training loop, and nothing in the training changes.

recorder = RunRecorder("runs/copa-minilm", train=train_examples, test=test_examples)
with recorder.run("seed-0", model=model, loss=per_example_loss, optimizer=optimizer) as run:
    for batch in loader:
        ...                                     # your own training step
        run.step(example_ids=batch["id"], train_loss=loss)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, Literal

import filelock
import pandas as pd
import torch

from simfluence import renamed
from simfluence.errors import RecordingError, RunExistsError
from simfluence.recording import mirror as mirrors
from simfluence.recording import schedule, training_state
from simfluence.recording.active import ActiveRun
from simfluence.recording.budget import Budget
from simfluence.recording.evaluator import Evaluate, Evaluator, LossFunction
from simfluence.recording.notices import RecordingStoppedWarning
from simfluence.recording.processes import Processes
from simfluence.recording.schedule import KeepWeights
from simfluence.recording.stream import StreamTable
from simfluence.recording.subset import Rotation
from simfluence.recording.watch import innermost
from simfluence.recording.wrappers import is_deepspeed_engine, is_sharded
from simfluence.runs import ExampleTable, storage
from simfluence.runs.run import Status


class RunRecorder:
    """Records runs over one training and one test table into a folder.

    Parameters
    ----------
    path : the run set's folder; made if it is not there.
    train, test : the examples: mappings or dataclasses with a unique field ``id`` (and ``group``,
        if any), or a data frame or data set of them. The loss function is handed lists of the test
        examples, as they are.
    batch_size, length, autocast : how test examples are evaluated, see :class:`Evaluator`.
    text : whether the examples' texts are kept in the set's table.
    nonfinite : what to do when a test loss is NaN or infinite: "warn" once and record it as such, or
        "raise" a FloatingPointError; either names the step and the test example.
    on_error : what to do when nothing can be written (a full disk, a read-only or vanished folder):
        "raise" a RecordingError, or warn and "continue" the training unrecorded. What was recorded
        before stays as it is.
    mirror : where else training losses, learning rates and mean test losses are shown while a run is
        recorded: "tensorboard" (event files in ``path``/tensorboard), "wandb" or "trackio" (a project named
        after the folder), by their own clients (:mod:`simfluence.recording.mirror`).

    Raises
    ------
    ModuleNotFoundError : the mirror's client is not installed.
    RecordingError : the folder holds runs over other examples, or cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        train: ExampleTable | Iterable[Any] | Literal["stream"],
        test: Iterable[Any],
        *,
        batch_size: int | None = None,
        length: Callable[[Any], float] | None = None,
        autocast: torch.dtype | None = None,
        text: bool = True,
        nonfinite: Literal["warn", "raise"] = "warn",
        on_error: Literal["raise", "continue"] = "raise",
        mirror: Literal["tensorboard", "wandb", "trackio"] | None = None,
    ) -> None:
        mirrors.check(mirror)
        if isinstance(train, str) and train != "stream":
            raise ValueError(f"train= is a list of examples, or 'stream'; got the text {train[:40]!r}")
        for name, value, known in (
            ("nonfinite", nonfinite, ("warn", "raise")),
            ("on_error", on_error, ("raise", "continue")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {value!r}")
        self.path = Path(path)
        self._text = text
        self.train = StreamTable(text=text) if isinstance(train, str) else ExampleTable.of(train)
        """The training table; of a stream an empty one, since each run fills one of its own."""
        self.test_examples = _listed(test)
        self.test = ExampleTable.of(self.test_examples)
        self.nonfinite, self.on_error, self.mirror = nonfinite, on_error, mirror
        self._batching = {"batch_size": batch_size, "length": length, "autocast": autocast}
        self._recording = True
        try:
            self._open_set()
        except OSError as error:
            message = f"cannot record into {self.path}: {error}"
            if on_error == "raise":
                raise RecordingError(message) from error
            warnings.warn(
                f"{message}; training goes on without recording", RecordingStoppedWarning, stacklevel=2
            )
            self._recording = False

    @renamed.refuse_old(renamed.RECORDING)
    def run(
        self,
        run_id: str,
        *,
        model: Any,
        loss: LossFunction,
        optimizer: Any = None,
        total_steps: int | None = None,
        evaluate_every: int = 1,
        evaluate_at: Iterable[int] | None = None,
        evaluate_within: float | None = None,
        evaluate_subset: float | None = None,
        keep_weights: KeepWeights = None,
        resume_every: int | None = None,
        state: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        restart: bool = False,
        resume: bool | int = False,
    ) -> ActiveRun:
        """A run to be recorded: use it in a ``with`` statement around the training loop.

        Parameters
        ----------
        run_id : the run's name in the set.
        model : handed to ``loss``; a module is put into eval mode meanwhile. A fingerprint of its weights as
            the run begins is kept: runs should start alike (seed before the model is made, or load the same
            weights in every run), since no simulator knows what other initial weights do.
        loss : (model, test examples) → loss of each, [len(examples)]; or a mapping of such values by
            name, "loss" among them.
        optimizer : its settings, and its learning rate at every step, are logged with the run, by parameter
            group where these differ; several optimizers as a list. Without it, steps that changed nothing are
            not noticed.
        total_steps : how many steps the run will have, where that is known. With fewer it is not complete,
            unless :meth:`ActiveRun.ends_early` was called.
        evaluate_every : steps between evaluations of the test examples (the last step is evaluated
            too, if ``total_steps`` is given); or
        evaluate_at : the steps to evaluate after, 0 (before the first) always among them; or
        evaluate_within : the share of the time of training that evaluations may add: with 0.1 they take at
            most 10 % more time. The steps are chosen as training goes, more of them at the
            beginning (see :mod:`.budget`); those before the first and after the last of ``total_steps`` are
            always evaluated.
        evaluate_subset : of a large test set, how many test examples are evaluated at a time: a share (0.25)
            or a number. Evaluations take them in turn, the others are NaN; before the first step and after
            the last of ``total_steps`` all are evaluated (see :mod:`.subset`). None: all, every time.
        keep_weights : when weights are kept, for attribution: after "every" step (and at 0), at a number
            of steps evenly spaced over ``total_steps``, or at given steps. Where most parameters are
            frozen, only those that train, or did so earlier in the run, are kept.
        resume_every : steps between resumable checkpoints; only the last one is kept, and that only
            until the run is complete.
        state : what resumable checkpoints hold by name, beside the random states: by default the model
            and the optimizer; add schedulers and the generators that the loop draws from.
        config, seed : kept with the run.
        restart : start an interrupted or failed run anew; what there is of it stays beside it.
        resume : go on with an interrupted or failed run from its last resumable checkpoint (from the
            beginning, if it has none), with ``run.start`` steps taken already; start it, if there is
            none. A number: a framework has restored the training as it was after that step.

        Raises
        ------
        ValueError : a name that could not be a folder's, a ``config`` with keys that JSON has not, or options
            that do not fit together.
        RunExistsError : the run is complete, or recorded by another process just now, or was cut off
            and neither ``restart`` nor ``resume`` is given.
        """
        storage.check_run_id(run_id)
        if restart and resume:
            raise ValueError("give either restart or resume, not both")
        if resume_every is not None and resume_every < 1:
            raise ValueError(f"resume_every is a number of steps, at least 1, got {resume_every}")
        _check_keys(config or {}, "config")
        several = isinstance(optimizer, list | tuple)
        optimizers = list(optimizer) if several else [] if optimizer is None else [optimizer]
        if resume_every is not None and (is_sharded(model) or is_deepspeed_engine(model)):
            raise ValueError(
                "resume_every cannot save a training whose state is spread over processes (FSDP, DeepSpeed):"
                " save checkpoints by your framework, and pass the step that it restored as resume="
            )
        if state is None and resume_every is not None:
            if not optimizers:
                raise ValueError(
                    "to be resumable a run needs optimizer=, or all that it is made of as state="
                )
            named = {f"optimizer {i}": one for i, one in enumerate(optimizers)}
            state = {"model": model, **(named if several else {"optimizer": optimizer})}
        training_state.check(state or {})
        if self._recording:
            Processes.current().from_writer(lambda: self._check_free(run_id, restart or bool(resume)))
        evaluator: Evaluate = Evaluator(self.test_examples, loss, **self._batching)  # type: ignore[arg-type]
        rotation = None
        if evaluate_subset is not None:
            rotation = Rotation(evaluate_subset, len(self.test), total_steps)
        evaluate_after = schedule.evaluations(evaluate_every, evaluate_at, total_steps)
        if evaluate_within is not None:
            if evaluate_every != 1 or evaluate_at is not None:
                raise ValueError("give one of evaluate_every, evaluate_at and evaluate_within")
            parts = 1 if rotation is None else len(rotation.groups)
            budget = Budget(evaluate_within, total_steps, whole=parts)
            evaluator, evaluate_after = budget.measuring(evaluator), budget
        return ActiveRun(
            self.path / run_id,
            StreamTable(text=self._text) if isinstance(self.train, StreamTable) else self.train,
            self.test,
            evaluator,
            model=model,
            optimizers=[innermost(one) for one in optimizers],
            total_steps=total_steps,
            evaluate_at=evaluate_after,
            rotation=rotation,
            weights_at=schedule.weights(keep_weights, total_steps),
            resume_every=resume_every,
            state=state or {},
            resume=resume,
            nonfinite=self.nonfinite,
            on_error=self.on_error,
            about={"seed": seed, "config": dict(config or {})},
            mirror=mirrors.Mirror(self.mirror, self.path / run_id, self.test.groups, config or {}),
            recording=self._recording,
        )

    def status(self, run_id: str) -> Status | None:
        """How a run of this name stands; None if there is none."""
        folder = self.path / storage.check_run_id(run_id)
        return storage.status(folder) if (folder / storage.MANIFEST).exists() else None

    def _check_free(self, run_id: str, again: bool) -> None:
        status = self.status(run_id)
        if status == "running":
            if storage.read_manifest(self.path / run_id).get("pid") == os.getpid():
                raise RunExistsError(
                    f"run {run_id!r} is being recorded in this process already: the with statement or the"
                    " training in which it began has not ended"
                )
            raise RunExistsError(f"run {run_id!r} is being recorded by another process")
        if status == "complete":
            raise RunExistsError(
                f"run {run_id!r} is recorded already in {self.path}; choose another name,"
                " or delete its folder to record it again"
            )
        if status is not None and not again:
            raise RunExistsError(
                f"run {run_id!r} was {status} in {self.path}; pass resume=True to go on from its last"
                " resumable checkpoint, restart=True to record it from its beginning (what there is of it"
                " stays beside it), or choose another name"
            )

    def _open_set(self) -> None:
        """Make the folder with its tables, or check that it is about the same examples."""
        self.path.mkdir(parents=True, exist_ok=True)
        ours = None if isinstance(self.train, StreamTable) else self.train, self.test
        with filelock.FileLock(self.path / storage.LOCK):
            if not (self.path / storage.EXAMPLES).exists():
                train, test = (
                    table if self._text or table is None else table.without_text() for table in ours
                )
                assert test is not None
                storage.write_examples(self.path, train, test)
                return
        theirs = storage.read_tables(self.path)
        if (ours[0] is None) != (theirs[0] is None):
            kinds = ["a stream", "a table of training examples"]
            there, here = reversed(kinds) if ours[0] is None else kinds
            raise RecordingError(
                f"{self.path} holds runs over {there}, and this recorder is over {here}; record into another"
                " folder"
            )
        for name, mine, other in zip(("training", "test"), ours, theirs, strict=True):
            if mine is not None and other is not None and mine != other:
                raise RecordingError(
                    f"{self.path} holds runs over {len(other)} other {name} examples than the {len(mine)}"
                    " given (ids, groups, contents and order count); record into another folder"
                )


def _listed(examples: Iterable[Any]) -> list[Any]:
    """The examples one by one, of whatever holds them."""
    if isinstance(examples, ExampleTable):
        raise TypeError("test= needs the examples, which the loss function is handed; got only their table")
    if isinstance(examples, pd.DataFrame):
        return examples.to_dict("records")
    if isinstance(examples, torch.utils.data.Dataset) and isinstance(examples, Sized):
        return [examples[row] for row in range(len(examples))]
    return list(examples)


def _check_keys(config: Any, where: str) -> None:
    """Raises ValueError naming the first entry of the configuration whose key JSON does not have."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if not isinstance(key, str | int | float | None):
                raise ValueError(f"the keys of {where} must be strings, got {key!r}")
            _check_keys(value, f"{where}[{key!r}]")
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            _check_keys(value, f"{where}[{number}]")
