"""Recorded runs, trained again step by step, for what needs the weights along the way."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from simfluence.devices import chosen_device
from simfluence.finetuning.experiment import Prepared
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.runs import Run


def recorded_device(run: Run) -> torch.device:
    """The kind of device that the run was trained on, if it is here: elsewhere dropout draws other masks."""
    return chosen_device("cpu" if run.environment.get("device", "cpu") == "cpu" else None)


def retraced(prepared: Prepared, run: Run) -> Iterator[int]:
    """Trains the prepared model as in a run that ``record_runs`` made, and yields the steps taken: 0, 1, …

    The weights at every yield are those of the run, on the same machine and versions to the last bit (on
    GPUs: nearly). The model is the process's one: let a replay end before the next begins.
    """
    model, examples = prepared.model, prepared.task.train
    model.load_state_dict(prepared.initial)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(trained, len(run.curriculum), **run.config["run"]["optimizer"])
    torch.manual_seed(int(run.config["run"]["seed"]))  # dropout, where there is any
    yield 0
    for step, batch in enumerate(run.curriculum):
        model.train()
        loss = model.losses([examples[row] for row in batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield step + 1
