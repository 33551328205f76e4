"""What all importers share: they read a file into logs, and here the logs become runs.

In a log, steps count from 1: step s consumes the batch s, and a loss "at step s" is that after the batch s,
so that the losses before training are those at step 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, IntArray
from simfluence.errors import RunDataError
from simfluence.runs.run import FloatArray, Run
from simfluence.runs.tables import ExampleTable

InitialLoss: TypeAlias = Literal["first"] | Mapping[str, float] | npt.ArrayLike | None
"""The losses before the first step, for runs that have none: one number, test id → loss, an array [test],
or one [run, test]. "first" begins every run at the first losses it has, and leaves out the steps up to these.
With None, a run that has none is an error."""


@dataclass(frozen=True)
class Log:
    """One run as it was read.

    name : the run's name.
    batches : step → the ids of the training examples it consumed.
    evaluated : int [evaluated step], ascending, at least one: the steps that there are losses at.
    metrics : name → float [evaluated step, test]; "loss" is among them.
    learning_rate, train_loss : step → value, where it is known.
    config : what is kept with the run.
    amounts : step → how much of each in its batch it consumed; empty for counted examples.
    """

    name: str
    batches: Mapping[int, Sequence[str]]
    evaluated: IntArray
    metrics: Mapping[str, FloatArray]
    learning_rate: Mapping[int, float] = field(default_factory=dict)
    train_loss: Mapping[int, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    amounts: Mapping[int, Sequence[float]] = field(default_factory=dict)


Read: TypeAlias = tuple[list[Log], ExampleTable, ExampleTable]
"""What a reader finds in a file: the logs, the training table and the test table."""


def runs_of(
    logs: Sequence[Log],
    train: ExampleTable,
    test: ExampleTable,
    initial_loss: InitialLoss = None,
    optimizer: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> list[Run]:
    """The logs as runs over these tables.

    Parameters
    ----------
    initial_loss : as :data:`InitialLoss` says; a run that has losses at step 0 keeps them.
    optimizer : class and settings of the optimizer that all runs were trained with, if known.
    allow_nonfinite : whether losses may be NaN or infinite (simulators leave them out).

    Raises
    ------
    RunDataError : a step or the initial losses are missing, a loss is not finite, or an id is not in its
        table; the message names the run.
    """
    first = isinstance(initial_loss, str)
    if first and initial_loss != "first":
        raise ValueError(
            f"initial_loss is 'first', or the losses before the first step; got {initial_loss!r}"
        )
    given = None if first or initial_loss is None else _initial_losses(initial_loss, len(logs), test)
    runs = []
    for number, log in enumerate(logs):
        start = int(log.evaluated[0]) if first else 0
        evaluated, metrics = log.evaluated, dict(log.metrics)
        if evaluated[0] > start:
            row = None if given is None else given[number]
            evaluated, metrics = _with_initial_loss(log, row)
        if not allow_nonfinite:
            check_finite(f"run {log.name!r}", metrics["loss"], evaluated, test)
        steps = _steps_after(start, log)
        runs.append(
            Run(
                id=log.name,
                curriculum=_curriculum(log, steps, train),
                metrics=metrics,
                evaluated=evaluated - start,
                learning_rate=np.array([log.learning_rate.get(s, np.nan) for s in steps], np.float64),
                train_loss=np.array([log.train_loss.get(s, np.nan) for s in steps], np.float64),
                optimizer=dict(optimizer or {}),
                config={**log.config, "steps_left_out": len(log.batches) - len(steps)}
                if first
                else dict(log.config),
            )
        )
    return runs


def _curriculum(log: Log, steps: Sequence[int], train: ExampleTable) -> Curriculum:
    curriculum = Curriculum.from_batches([train.rows(log.batches[s]) for s in steps], len(train))
    if not log.amounts:
        return curriculum
    amounts = np.concatenate([log.amounts[s] for s in steps]) if steps else np.empty(0)
    return Curriculum(curriculum.examples, curriculum.offsets, len(train), amounts)


def check_finite(run: str, loss: FloatArray, evaluated: npt.ArrayLike, test: ExampleTable) -> None:
    """RunDataError naming the first loss that is NaN or infinite; ``loss`` is [evaluated step, test]."""
    bad = np.argwhere(~np.isfinite(loss))
    if len(bad):
        row, z = bad[0]
        value = "NaN or missing" if np.isnan(loss[row, z]) else loss[row, z]
        raise RunDataError(
            f"{run}: the loss of test example {test.ids[z]!r} at step {np.asarray(evaluated)[row]} is {value}"
            f" ({len(bad)} losses are not finite); leave the run out, or pass allow_nonfinite=True to have"
            " simulators leave these transitions out"
        )


def _steps_after(start: int, log: Log) -> list[int]:
    """The steps of a log after that one; up to its last losses none may be missing."""
    if log.batches and min(log.batches) < 1:
        raise RunDataError(
            f"run {log.name!r}: step {min(log.batches)} consumes examples, but steps count from 1 (0 is"
            " before training): add to the steps of its batches"
        )
    steps = sorted(step for step in log.batches if step > start)
    last = max([*steps, int(log.evaluated[-1])])
    if missing := set(range(start + 1, last + 1)) - set(steps):
        raise RunDataError(
            f"run {log.name!r}: no example is said to be consumed by step {min(missing)} (there are"
            f" {len(steps)} steps{', beginning with ' + str(steps[0]) if steps else ''})"
        )
    return steps


def _with_initial_loss(log: Log, row: FloatArray | None) -> tuple[IntArray, dict[str, FloatArray]]:
    """The evaluated steps and metrics with the losses before the first step; other metrics are NaN there."""
    if row is None:
        raise RunDataError(
            f"run {log.name!r} has no losses before its first step: they begin at step {log.evaluated[0]}."
            " Give those at step 0 as initial_loss=, or pass initial_loss='first' to begin the run at its"
            " first losses and leave out the steps up to these"
        )
    metrics = {
        name: np.concatenate([np.full_like(values[:1], np.nan), values])
        for name, values in log.metrics.items()
    }
    metrics["loss"][0] = row
    return np.concatenate([[0], log.evaluated]), metrics


def _initial_losses(given: Any, n_runs: int, test: ExampleTable) -> npt.NDArray[np.float64]:
    """float [run, test]"""
    if isinstance(given, Mapping):
        by_row = dict(zip(test.rows(given).tolist(), given.values(), strict=True))
        if missing := [z for z in range(len(test)) if z not in by_row]:
            raise RunDataError(f"initial_loss has no loss of test example {test.ids[missing[0]]!r}")
        given = [by_row[z] for z in range(len(test))]
    values = np.asarray(given, np.float64)
    if values.shape not in ((), (len(test),), (n_runs, len(test))):
        raise RunDataError(
            f"initial_loss must be one number, [test] = ({len(test)},) or [run, test] ="
            f" ({n_runs}, {len(test)}), got shape {values.shape}"
        )
    return np.broadcast_to(values, (n_runs, len(test)))
