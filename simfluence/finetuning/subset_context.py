"""The attribution context of a training that is not recorded: weights are held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from simfluence.attribution.checkpoints import Checkpoint
from simfluence.attribution.registry import AttributionContext
from simfluence.finetuning.experiment import Prepared
from simfluence.finetuning.models import Model
from simfluence.finetuning.subsets import train_on_subset
from simfluence.recording.environment import describe_optimizers
from simfluence.recording.schedule import weights
from simfluence.recording.watch import OptimizerWatch
from simfluence.runs import ExampleTable
from simfluence.runs.tables import TableFingerprints


def trained_context(
    prepared: Prepared,
    options: Mapping[str, Any],
    kept: npt.NDArray[np.bool_],
    seed: int,
    *,
    checkpoints: int = 1,
) -> tuple[AttributionContext, torch.optim.Optimizer]:
    """Train on a subset (:func:`.subsets.train_on_subset`), and give the context for attribution.

    options : the experiment's ``run``. kept : bool [train]. checkpoints : how many of the run's weights are
        kept, evenly spaced, the last after the last step.

    Returns
    -------
    The context, whose model has the last weights, and the optimizer with its state after the last step.
    """
    model, task, design = prepared.model, prepared.task, options["design"]
    steps = int(kept.sum()) * design["epochs"] // design["batch_size"]
    run = _KeptWeights(model, weights(checkpoints, steps))
    optimizer = train_on_subset(prepared, options, kept, seed, run)
    described = describe_optimizers(OptimizerWatch([optimizer], model))
    rate = float(optimizer.param_groups[0]["lr"])
    context = AttributionContext(
        objective=model,
        train=task.train,
        test=task.test,
        train_texts=[example.text for example in task.train],
        test_texts=[example.text for example in task.test],
        checkpoints=[
            Checkpoint(step, rate, partial(_load, values=values), optimizer=described)
            for step, values in run.kept.items()
        ],
        tokens=model.token_strings,
        batch=design["batch_size"],
        optimizer=described,
        tables=TableFingerprints.of(ExampleTable.of(task.train), ExampleTable.of(task.test)),
    )
    return context, optimizer


@dataclass
class _KeptWeights:
    """Copies the trained parameters after the steps at which that is due."""

    model: Model
    due: Any
    start: int = 0
    step_number: int = 0
    kept: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def step(self, example_ids: list[str], train_loss: torch.Tensor) -> None:
        self.step_number += 1
        if self.due(self.step_number):
            self.kept[self.step_number] = {
                name: parameter.detach().clone()
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad
            }


def _load(module: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    module.load_state_dict(dict(values), strict=False)
