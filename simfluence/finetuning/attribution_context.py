"""The attribution context of a run that ``simfluence record`` made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from simfluence.attribution.checkpoints import Checkpoint, recorded_checkpoints
from simfluence.attribution.groups import rates_at, relative_rates
from simfluence.attribution.registry import AttributionContext
from simfluence.curriculum import usual_batch_size
from simfluence.errors import RunDataError
from simfluence.finetuning.experiment import Prepared, prepare
from simfluence.finetuning.retrain import check_task
from simfluence.runs import Run
from simfluence.runs.storage import read_examples
from simfluence.runs.tables import TableFingerprints


def recorded_context(
    path: str | Path,
    run: Run,
    steps: Sequence[int] | Literal["initial"] | None = None,
    device: str | None = None,
) -> AttributionContext:
    """The model, examples and weights of a run, which belongs to the run set in the folder ``path``.

    steps : only the weights after these steps; None: all that were kept; "initial": the weights before
        training, which need not be kept.
    device : where the model lies, as torch names it; None is the GPU if torch finds one.

    Raises RunDataError if the run was not recorded by ``simfluence record``, kept no such weights, or its
    task no longer has the examples of the set.
    """
    if not run.config:
        raise RunDataError(f"{path} was not recorded by `simfluence record`: its model is not known")
    if steps == "initial":
        first = float(np.asarray(run.learning_rate)[0])
        kept = [Checkpoint(0, first, lambda module: None, rates_at(run, 0), run.optimizer)]
    else:
        kept = recorded_checkpoints(Path(path) / run.id, run, steps)
    prepared = prepare(run.config, device)
    task, (train, test) = prepared.task, read_examples(Path(path))
    check_task(task, train, test)
    return AttributionContext(
        objective=prepared.model,
        train=task.train,
        test=task.test,
        train_texts=[example.text for example in task.train],
        test_texts=[example.text for example in task.test],
        checkpoints=[_after_initial(checkpoint, prepared) for checkpoint in kept],
        tokens=prepared.model.token_strings,
        batch=int(usual_batch_size([run.curriculum])),
        optimizer=run.optimizer,
        rates=partial(relative_rates, run),
        tables=TableFingerprints.of(train, test),
    )


def _after_initial(checkpoint: Checkpoint, prepared: Prepared) -> Checkpoint:
    """A checkpoint that first restores the initial weights: frozen parameters are not kept with a run."""

    def load(module: nn.Module) -> None:
        module.load_state_dict(prepared.initial)
        checkpoint.load(module)

    return replace(checkpoint, load=load)
