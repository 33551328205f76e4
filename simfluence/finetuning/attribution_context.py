"""The attribution context of a run that ``simfluence record`` made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from torch import nn

from simfluence.attribution.checkpoints import Checkpoint, recorded_checkpoints
from simfluence.attribution.groups import rates_at, relative_rates
from simfluence.attribution.objective import LossesOnly
from simfluence.attribution.registry import AttributionContext
from simfluence.curriculum import usual_batch_size
from simfluence.errors import RunDataError
from simfluence.finetuning.experiment import Prepared, prepare
from simfluence.finetuning.retrain import check_task, recorded_config
from simfluence.finetuning.tasks import load_task
from simfluence.runs import Run
from simfluence.runs.storage import read_examples
from simfluence.runs.tables import TableFingerprints


def recorded_context(
    path: str | Path,
    run: Run,
    steps: int | Sequence[int] | Literal["initial"] | None = None,
    device: str | None = None,
) -> AttributionContext:
    """The model, examples and weights of a run, which belongs to the run set in the folder ``path``.

    steps : only the weights after this step, or these; None: all that were kept; "initial": the weights
        before training, which need not be kept.
    device : where the model lies, as torch names it; None is the GPU if torch finds one.

    Raises ValueError for other steps, and RunDataError if the run was not recorded by ``simfluence record``,
    kept no such weights, or its task no longer has the examples of the set.
    """
    chosen = None if steps is None or steps == "initial" else _whole(steps)
    if not run.config:
        raise RunDataError(f"{path} was not recorded by `simfluence record`: its model is not known")
    if steps == "initial":
        first = float(np.asarray(run.learning_rate)[0])
        kept = [Checkpoint(0, first, lambda module: None, rates_at(run, 0), run.optimizer)]
    else:
        kept = recorded_checkpoints(Path(path) / run.id, run, chosen)
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


def recorded_texts(path: str | Path, run: Run) -> AttributionContext:
    """A context of texts alone, for the methods in :data:`.registry.OF_TEXTS`: no model is loaded.

    The texts are those that the run set in the folder ``path`` keeps, or else those of the run's task.

    Raises RunDataError if there are none, or the task no longer has the examples of the set.
    """
    train, test = read_examples(Path(path))
    texts = [table.frame["text"].tolist() for table in (train, test)]
    if not all(any(of_table) for of_table in texts):
        if not run.config:
            raise RunDataError(
                f"{path} keeps no texts of its examples (text=True of the recorder keeps them)"
            )
        task = load_task(**recorded_config(run)["task"])
        check_task(task, train, test)
        texts = [[example.text for example in examples] for examples in (task.train, task.test)]
    return AttributionContext(
        objective=LossesOnly(nn.Module(), _no_model),
        train=train.ids,
        test=test.ids,
        train_texts=texts[0],
        test_texts=texts[1],
        checkpoints=[],
        tokens=_no_model,
        tables=TableFingerprints.of(train, test),
    )


def _no_model(examples: object) -> NoReturn:
    raise ValueError("this takes a model, but the context was made of texts alone")


def _whole(steps: object) -> list[int]:
    """One step or several. ValueError for anything else."""
    try:
        return [index(step) for step in ([steps] if isinstance(steps, int) else steps)]  # type: ignore[attr-defined]
    except TypeError:
        raise ValueError(f"steps must be null, initial, a step, or a list of steps; got {steps!r}") from None


def _after_initial(checkpoint: Checkpoint, prepared: Prepared) -> Checkpoint:
    """A checkpoint that first restores the initial weights: frozen parameters are not kept with a run."""

    def load(module: nn.Module) -> None:
        module.load_state_dict(prepared.initial)
        checkpoint.load(module)

    return replace(checkpoint, load=load)
