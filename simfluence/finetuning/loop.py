"""The training loop. It uses the recorder as any training loop would."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from simfluence.curriculum import Curriculum, check_counted
from simfluence.finetuning.models import Model
from simfluence.finetuning.tasks import TextExample
from simfluence.recording import ActiveRun


def train(
    model: Model,
    examples: Sequence[TextExample],
    curriculum: Curriculum,
    optimizer: torch.optim.Optimizer,
    run: ActiveRun | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """One pass over the curriculum: a step of the optimizer on the mean loss of each batch.

    A resumed ``run`` goes on after the steps that it has taken already.

    Raises ValueError for a curriculum of shares.
    """
    check_counted([curriculum], "training")
    model.train()
    for step in range(run.start if run is not None else 0, len(curriculum)):
        chosen = [examples[row] for row in curriculum[step]]
        loss = model.losses(chosen).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if run is not None:  # last, since a resumable checkpoint holds the state as it is then
            run.step(example_ids=[example.id for example in chosen], train_loss=loss)
