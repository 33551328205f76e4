"""Scores of one method at several steps of a run: what steps do changes as the model learns.

    S_s(i, z), the method's score with the weights after step s, in the optimizer's metric at these weights

``AutoSimulator(scores)`` and the other simulators with training dynamics make a kernel of them
(simulators/dynamics/kernels.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from simfluence.attribution.checkpoints import recorded_checkpoints
from simfluence.attribution.groups import ADAM, optimizers_of, relative_rates
from simfluence.attribution.methods import attribute
from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import selected_parameters
from simfluence.attribution.registry import OF_ALL_CHECKPOINTS, AttributionContext
from simfluence.curriculum import usual_batch_size
from simfluence.errors import RunDataError
from simfluence.recording.weights import weight_steps
from simfluence.runs import ExampleTable, RunSet
from simfluence.runs.tables import TableFingerprints, difference
from simfluence.scores import InfluenceScores


def along_run(
    context: AttributionContext, name: str = "gradient_step", *, progress: bool = False, **options: Any
) -> InfluenceScores:
    """The scores of a method at every checkpoint of the context, [step, train, test].

    options : as of :func:`.methods.attribute`.

    Raises ValueError, besides what the method raises, for a method that has one answer for all checkpoints.
    """
    if name in OF_ALL_CHECKPOINTS:
        raise ValueError(
            f"{name} has one score of all checkpoints together: use attribute(context, {name!r})"
        )
    if options.get("factors") is not None:
        raise ValueError(
            "factors in a file are of one step: several steps take factors of their own (method.factors=null)"
        )
    parts = []
    for checkpoint in context.checkpoints:
        if progress:
            print(f"after step {checkpoint.step}", flush=True)
        one = replace(context, checkpoints=[checkpoint])
        parts.append(attribute(one, name, progress=progress, **options))
    if not parts:
        raise ValueError("scores along a run need checkpoints, got none")
    provenance = {key: value for key, value in parts[0].provenance.items() if key != "step"}
    return replace(
        parts[0],
        scores=np.stack([part.scores for part in parts]),
        steps=tuple(checkpoint.step for checkpoint in context.checkpoints),
        provenance=provenance,
    )


def scores_along_run(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    path: str | Path,
    run_id: str | None = None,
    *,
    steps: Sequence[int] | None = None,
    method: str = "gradient_step",
    progress: bool = False,
    **options: Any,
) -> InfluenceScores:
    """Scores [step, train, test] with the weights that were kept of a recorded run, of a model of one's own.

    The optimizer, its rates and the size of batches are those of the recording.

    Parameters
    ----------
    objective : the model and its losses. train, test : the examples as it takes them, in the order in which
        the recorder was given them.
    path : the folder of the run set. run_id : the run, recorded with ``keep_weights=[0, …]``; None: the first
        that kept weights.
    steps : only after these steps; None: all whose weights were kept.
    options : the method's own.

    Raises
    ------
    RunDataError : no weights were kept, or the examples are others than those of the recording.
    ValueError : as :func:`along_run`.
    """
    runs = RunSet.load(path)
    for kind, table, examples in (("training", runs.train, train), ("test", runs.test, test)):
        _check(kind, table, examples)
    with_weights = [run.id for run in runs if weight_steps(Path(path) / run.id)]
    run = runs[runs.position(run_id or (with_weights or runs.ids)[0])]
    context = AttributionContext(
        objective=objective,
        train=train,
        test=test,
        train_texts=runs.train.frame["text"].tolist(),
        test_texts=runs.test.frame["text"].tolist(),
        checkpoints=recorded_checkpoints(Path(path) / run.id, run, steps),
        tokens=str.split,
        batch=int(usual_batch_size([run.curriculum])),
        optimizer=run.optimizer,
        rates=partial(relative_rates, run),
        tables=TableFingerprints.of(runs.train, runs.test),
        run=run,
    )
    found = along_run(context, method, progress=progress, **options)
    return replace(found, provenance={"runs": Path(path).name, "run": run.id, **found.provenance})


def expected_cost(context: AttributionContext, name: str, **options: Any) -> str:
    """What scores at all checkpoints cost, in words: how many gradients of examples, and, from the time of a
    few of them here, seconds.

    Both are said of inner products of gradients (``gradient_…``) alone; other methods do more than that. In
    Adam's metric training examples are gone through twice, first for the sizes of their gradients.
    """
    steps, train, test = len(context.checkpoints), len(context.train), len(context.test)
    if not name.startswith("gradient_"):
        return f"scores after {steps} steps, each of {train} training and {test} test examples"
    parameters, batch_size = options.get("parameters"), options.get("batch_size", 8)
    names = selected_parameters(context.objective.module, parameters)
    of_adam = name == "gradient_step" and set(optimizers_of(context.optimizer, names)) & set(ADAM)
    twice = "2 × " if of_adam or name == "gradient_adam" else ""
    passes = 2 if twice else 1
    gradients = steps * (passes * train + test)
    some = replace(context, train=context.train[:batch_size], test=context.test[:batch_size])
    seconds = 0.0
    for _ in range(2):  # the first time, much is prepared that later passes find ready
        start = time.perf_counter()
        attribute(some, name, **options)
        each = (time.perf_counter() - start) / (passes * len(some.train) + len(some.test))
        seconds = gradients * each
    return (
        f"scores after {steps} step{'s' * (steps > 1)}: {steps} × ({twice}{train} training + {test} test"
        f" examples) = {gradients} gradients, about {seconds:.0f} s"
    )


def _check(kind: str, table: ExampleTable, examples: Sequence[Any]) -> None:
    """RunDataError if the examples are known to be others than the table's, by their number or ids."""
    try:
        expected, found = (
            ExampleTable(table.frame[["id"]]),
            ExampleTable(ExampleTable.of(examples).frame[["id"]]),
        )
    except RunDataError:  # of a form without ids
        expected, found = ExampleTable.numbered(len(table)), ExampleTable.numbered(len(examples))
    if differs := difference(expected, found):
        raise RunDataError(f"the {kind} examples are not those of the recording: {differs}")
