"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from simfluence.runs.schedule import as_schedule

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
}
"""The share of steps taken (0 .. 1) → the share of the full learning rate."""


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    steps: int,
    *,
    name: str,
    lr: float,
    schedule: str | Sequence[float] = "constant",
    **options: Any,
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """An optimizer over these parameters and its schedule over that many steps.

    schedule : a name, or the learning rates step by step, of which the last one goes on. options : go to the
        optimizer's class.

    Raises ValueError naming what there is.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer is named {name!r}; there are {', '.join(OPTIMIZERS)}")
    if isinstance(schedule, str) and schedule not in SCHEDULES:
        raise ValueError(f"no schedule is named {schedule!r}; there are {', '.join(SCHEDULES)}")
    optimizer = OPTIMIZERS[name](parameters, lr=lr, **options)  # type: ignore[call-arg]
    if isinstance(schedule, str):
        share = SCHEDULES[schedule]
        return optimizer, LambdaLR(optimizer, lambda step: share(step / max(steps, 1)))
    rates = as_schedule(schedule, 1, max(len(schedule), 1))[0]
    return optimizer, LambdaLR(optimizer, lambda step: float(rates[min(step, len(rates) - 1)]) / lr)
