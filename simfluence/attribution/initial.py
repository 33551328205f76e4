"""Scores of the weights before training, kept beside the run set that is being recorded.

They are those of ``gradient_step``: what a step of the run's own optimizer on i takes off the loss of z. With
them a simulator needs a single recorded run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simfluence.attribution.along_run import expected_cost
from simfluence.attribution.checkpoints import Checkpoint
from simfluence.attribution.methods import attribute
from simfluence.attribution.objective import LossesOnly
from simfluence.attribution.registry import AttributionContext
from simfluence.recording.evaluator import undisturbed
from simfluence.runs.tables import TableFingerprints
from simfluence.scores import INITIAL_SCORES, InfluenceScores


def keep_initial_scores(
    path: str | Path,
    model: nn.Module,
    loss: Callable[[Any, list[Any]], Tensor | Mapping[str, Tensor]],
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    optimizer: Mapping[str, Any],
    batch: int,
    tables: TableFingerprints,
) -> None:
    """Score all training examples for all test examples with the model's present weights, and keep the scores
    in the folder ``path`` of a run set, if there are none yet. What they cost is printed first. The model,
    its gradients and all random states are left as they were.

    Parameters
    ----------
    loss : (model, examples) → loss of each, as a recorder takes it. train, test : examples as it takes them.
    optimizer : what will train the model (``Run.optimizer``). batch : examples in one of its steps.
    tables : the fingerprints of the tables that ``train`` and ``test`` are.

    Raises ValueError for an optimizer other than Adam and SGD, and what the loss raises.
    """
    file = Path(path) / INITIAL_SCORES
    if file.exists():
        return

    def losses(examples: Sequence[Any]) -> Tensor:
        found = loss(model, list(examples))
        return found if isinstance(found, Tensor) else found["loss"]

    context = AttributionContext(
        objective=LossesOnly(model, losses),
        train=train,
        test=test,
        train_texts=[""] * len(train),
        test_texts=[""] * len(test),
        checkpoints=[Checkpoint(0, np.nan, lambda module: None, optimizer=optimizer)],
        tokens=str.split,
        batch=batch,
        optimizer=optimizer,
        tables=tables,
    )
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    with undisturbed(model), torch.enable_grad():
        print(f"to keep: {expected_cost(context, 'gradient_step')}", flush=True)
        save_scores(attribute(context, "gradient_step", progress=True), file)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]


def save_scores(scores: InfluenceScores, file: Path) -> None:
    """As float32: half the size, and far more digits than scores have."""
    file.parent.mkdir(exist_ok=True)
    replace(scores, scores=scores.scores.astype(np.float32)).save(file)
