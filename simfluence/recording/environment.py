"""What a run was recorded with: versions, platform, and the optimizers with their settings."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

import simfluence
from simfluence.recording.watch import OptimizerWatch


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


def describe_optimizers(watch: OptimizerWatch, rates_differ: bool = False) -> dict[str, Any]:
    """Class and settings of the optimizer (of its main parameter group), for ``Run.optimizer``; {} for none.

    Where there are several groups that differ (in a setting, or as ``rates_differ`` says in their rates), the
    key "groups" holds an entry for each, in the order of ``Run.group_rates``: "parameters", the names of the
    model's parameters in it ("other_parameters": how many are not the model's), "lr", the rate as the run
    began, and all settings that differ.
    """
    if not watch.optimizers:
        return {}
    described = [
        _settings(optimizer, group) for optimizer in watch.optimizers for group in optimizer.param_groups
    ]
    main = described[watch.main]
    differing = [
        key for key in _all_keys(described) if any(one.get(key) != main.get(key) for one in described)
    ]
    if not differing and not rates_differ:
        return main
    groups = []
    for group, settings in zip(watch.groups, described, strict=True):
        known = [watch.names[id(p)][0] for p in group["params"] if id(p) in watch.names]
        entry: dict[str, Any] = {"parameters": known, "lr": settings["lr"]}
        if others := len(group["params"]) - len(known):
            entry["other_parameters"] = others
        groups.append(entry | {key: settings.get(key) for key in differing})
    return main | {"groups": groups}


def _settings(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    settings = {key: _plain(group.get(key)) for key in optimizer.defaults}
    return {"class": type(optimizer).__name__, **settings, "lr": _plain(group["lr"])}


def _all_keys(described: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for settings in described for key in settings))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.item()
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
