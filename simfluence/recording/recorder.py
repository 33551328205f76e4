"""The run logger: one line around a training loop, and nothing in the training changes.

recorder = RunRecorder("runs/copa-minilm", train=train_examples, test=test_examples)
with recorder.run("seed-0", model=model, loss=per_example_loss, optimizer=optimizer) as run:
    for batch in loader:
        ...                                     # your own training step
        run.step(example_ids=batch["id"], train_loss=loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import filelock
import torch

from simfluence.errors import RecordingError, RunExistsError
from simfluence.recording.active import ActiveRun
from simfluence.recording.evaluator import Evaluator, LossFunction
from simfluence.runs import ExampleTable, storage
from simfluence.runs.run import Status


class RunRecorder:
    """Records runs over one training and one test table into a folder.

    Parameters
    ----------
    path : the run set's folder; made if it is not there.
    train, test : the examples: mappings or dataclasses with a unique field ``id`` (and ``group``,
        if any), or a data frame. The loss function is handed lists of the test examples, as they are.
    batch_size, length : how test examples are batched, see :class:`Evaluator`.
    text : whether the examples' texts are kept in the set's table.
    nonfinite : what to do when a test loss is NaN or infinite: "warn" once and record it as such, or
        "raise" a FloatingPointError; either names the step and the test example.

    Raises
    ------
    RecordingError : the folder holds runs over other examples.
    """

    def __init__(
        self,
        path: str | Path,
        train: ExampleTable | Iterable[Any],
        test: Sequence[Any],
        *,
        batch_size: int = 32,
        length: Callable[[Any], float] | None = None,
        text: bool = True,
        nonfinite: Literal["warn", "raise"] = "warn",
    ) -> None:
        if nonfinite not in ("warn", "raise"):
            raise ValueError(f"nonfinite must be 'warn' or 'raise', got {nonfinite!r}")
        self.path = Path(path)
        self.train = ExampleTable.of(train)
        self.test = ExampleTable.of(test)
        self.nonfinite = nonfinite
        self._test_examples = test.to_dict("records") if hasattr(test, "to_dict") else list(test)
        self._batching = {"batch_size": batch_size, "length": length}
        self._open_set(text)

    def run(
        self,
        run_id: str,
        *,
        model: Any,
        loss: LossFunction,
        optimizer: torch.optim.Optimizer | None = None,
        evaluate_every: int = 1,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        restart: bool = False,
    ) -> ActiveRun:
        """A run to be recorded: use it in a ``with`` statement around the training loop.

        Parameters
        ----------
        run_id : the run's name in the set.
        model : handed to ``loss``; a module is put into eval mode meanwhile.
        loss : (model, test examples) → loss of each, [len(examples)]; or a mapping of such values by
            name, "loss" among them.
        optimizer : its settings, and its learning rate at every step, are logged with the run.
        evaluate_every : steps between evaluations of the test examples.
        config, seed : kept with the run.
        restart : start an interrupted or failed run anew; what there is of it stays beside it.

        Raises
        ------
        ValueError : a name that could not be a folder's.
        RunExistsError : the run is complete, or recorded by another process just now, or was cut off
            and ``restart`` is False.
        """
        storage.check_run_id(run_id)
        if evaluate_every < 1:
            raise ValueError(f"evaluate_every is a number of steps, at least 1, got {evaluate_every}")
        self._check_free(run_id, restart)
        return ActiveRun(
            self.path / run_id,
            self.train,
            self.test,
            Evaluator(self._test_examples, loss, **self._batching),  # type: ignore[arg-type]
            model=model,
            optimizer=optimizer,
            evaluate_every=evaluate_every,
            nonfinite=self.nonfinite,
            about={"seed": seed, "config": dict(config or {})},
        )

    def status(self, run_id: str) -> Status | None:
        """How a run of this name stands; None if there is none."""
        folder = self.path / storage.check_run_id(run_id)
        return storage.status(folder) if (folder / storage.MANIFEST).exists() else None

    def _check_free(self, run_id: str, restart: bool) -> None:
        status = self.status(run_id)
        if status == "running":
            raise RunExistsError(f"run {run_id!r} is being recorded by another process")
        if status == "complete":
            raise RunExistsError(
                f"run {run_id!r} is recorded already in {self.path}; choose another name,"
                " or delete its folder to record it again"
            )
        if status is not None and not restart:
            raise RunExistsError(
                f"run {run_id!r} was {status} in {self.path}; pass restart=True to record it from its"
                " beginning (what there is of it stays beside it), or choose another name"
            )

    def _open_set(self, text: bool) -> None:
        """Make the folder with its tables, or check that it is about the same examples."""
        self.path.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.path / storage.LOCK):
            if not (self.path / storage.EXAMPLES).exists():
                tables = [table if text else table.without_text() for table in (self.train, self.test)]
                storage.write_examples(self.path, *tables)
                return
        for name, ours, theirs in zip(
            ("training", "test"), (self.train, self.test), storage.read_examples(self.path), strict=True
        ):
            if ours != theirs:
                raise RecordingError(
                    f"{self.path} holds runs over {len(theirs)} other {name} examples than the {len(ours)}"
                    " given (ids, groups, contents and order count); record into another folder"
                )
