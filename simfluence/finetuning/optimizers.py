"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

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
    schedule: str = "constant",
    schedule_steps: float | None = None,
    **options: Any,
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """An optimizer over these parameters and its schedule over that many steps.

    schedule_steps : over how many steps the schedule goes, if not over ``steps``, as where a run is trained
        again on a shorter or longer curriculum at its old rates. Past them the last rate goes on.
    options : go to the optimizer's class.

    Raises ValueError naming what there is.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer is named {name!r}; there are {', '.join(OPTIMIZERS)}")
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule is named {schedule!r}; there are {', '.join(SCHEDULES)}")
    optimizer = OPTIMIZERS[name](parameters, lr=lr, **options)  # type: ignore[call-arg]
    share, total = SCHEDULES[schedule], max(schedule_steps or steps, 1)
    return optimizer, LambdaLR(optimizer, lambda step: share(min(step, total - 1) / total))
