"""What a run was recorded with: versions, platform, and the optimizer with its settings."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

import simfluence


def describe_environment(model: Any = None) -> dict[str, Any]:
    return {
        "simfluence": simfluence.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": device_of(model),
    }


def device_of(model: Any) -> str:
    """The kind of device that a model's first parameter lies on; "cpu" if it has none."""
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return "cpu" if parameter is None else parameter.device.type


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Class and settings; those that differ between parameter groups as a list of the groups'."""
    settings: dict[str, Any] = {"class": type(optimizer).__name__}
    for key in optimizer.defaults:
        values = [group.get(key) for group in optimizer.param_groups]
        settings[key] = _plain(values[0]) if all(v == values[0] for v in values) else _plain(values)
    return settings


def innermost(optimizer: Any) -> torch.optim.Optimizer | None:
    """The torch optimizer inside what accelerate or Lightning made of it."""
    while optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            raise TypeError(f"expected a torch optimizer, got {type(optimizer).__name__}")
        optimizer = inner
    # AcceleratedOptimizer is a torch optimizer whose hooks nobody calls
    wrapped = getattr(optimizer, "optimizer", None)
    return wrapped if isinstance(wrapped, torch.optim.Optimizer) else optimizer


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.item()
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
