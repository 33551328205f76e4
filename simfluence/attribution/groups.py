"""Parameter groups, of one optimizer or of several: what each parameter of a run was trained with.

Where groups differ, ``Run.group_rates`` has their rates and ``Run.optimizer["groups"]`` says which parameters
are in which, and their settings; a group of another optimizer has that one's class. Parameters in no group
were not trained, so that their rate is 0. Mappings parameter → value are empty if all parameters have the
same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.errors import RunDataError
from simfluence.recording.wrappers import plain_name
from simfluence.runs import Run

ADAM = ("Adam", "AdamW", "NAdam", "RAdam")
"""The optimizers that divide each weight's step by the size of its gradients."""


def rates_at(run: Run, step: int) -> dict[str, float]:
    """The learning rate of each parameter in a step; where momenta of SGD differ, relative to the main
    group's momentum, as in :func:`relative_rates`."""
    gains = _relative_gains(run.optimizer)
    if run.group_rates is not None:
        return _named(run, gains * run.group_rates[step])
    return {} if (gains == 1).all() else _named(run, gains * run.learning_rate[step])


def relative_rates(run: Run) -> dict[str, float]:
    """The learning rate of each parameter, summed over the run and relative to the sum of
    ``run.learning_rate``; of SGD, each times 1/(1 − momentum), what a gradient adds to all steps together,
    relative to that of the main group.

    Raises RunDataError if rates or momenta differ between groups and the recording does not say which
    parameters they have, or if rates are not known.
    """
    for setting in ("lr", "momentum", "dampening"):
        _check_parameters(run.optimizer, setting)
    if run.group_rates is None and "groups" not in run.optimizer:
        return {}
    gains, total = _relative_gains(run.optimizer), np.sum(run.learning_rate)
    if run.group_rates is None:
        return _named(run, gains)
    if not (np.isfinite(run.group_rates).all() and total > 0):
        raise RunDataError(
            f"run {run.id!r} has groups of parameters whose learning rates differ and are not all known, or"
            " the main one of them was never trained: choose gradient_dot or gradient_adam"
        )
    return _named(run, gains * run.group_rates.sum(0) / total)


def optimizers_of(optimizer: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[str]]:
    """The classes of the optimizers that trained these parameters of the model, each with its own.

    Raises RunDataError if they differ and the recording does not say which parameters were in which.
    """
    chosen = dict.fromkeys(map(plain_name, names))
    groups = optimizer.get("groups", ())
    if not any("class" in group for group in groups):
        return {class_name(optimizer): list(chosen)}
    _check_parameters(optimizer, "class")
    found: dict[str, list[str]] = {}
    for group in groups:
        if own := [name for name in map(plain_name, group["parameters"]) if name in chosen]:
            found.setdefault(class_name(group), []).extend(own)
    return found


def adam_eps(optimizer: Mapping[str, Any], names: Iterable[str]) -> float | dict[str, float]:
    """ε of Adam for these parameters: a number if Adam trained all of them, with the same one; else that of
    each parameter that Adam trained, by name.

    Raises RunDataError as :func:`optimizers_of`.
    """
    by_class = optimizers_of(optimizer, names)
    each = setting_by_parameter(optimizer, "eps")
    same = float(optimizer.get("eps") or 1e-8)
    if not each and set(by_class) <= set(ADAM):
        return same
    return {name: each.get(name, same) for kind in ADAM for name in by_class.get(kind, ())}


def class_name(optimizer: Mapping[str, Any]) -> str:
    """The optimizer's class without its module, "" if it was not recorded."""
    return str(optimizer.get("class") or "").rsplit(".", 1)[-1]


def setting_by_parameter(optimizer: Mapping[str, Any], setting: str) -> dict[str, float]:
    """The value of a setting (a number) that each parameter has.

    Raises RunDataError if groups have different ones and the recording does not say which parameters were in
    which.
    """
    _check_parameters(optimizer, setting)
    groups = optimizer.get("groups", ())
    main = optimizer.get(setting)
    values = [group.get(setting, main) for group in groups]
    return {} if len(set(values)) <= 1 else _values(optimizer, [float(value or 0.0) for value in values])


def says_parameters(optimizer: Mapping[str, Any], setting: str) -> bool:
    """Whether it is known which parameters have which value of a setting.

    Earlier recordings have a list of the groups' values, and no "groups"; of a model that is no torch module
    the parameters have no names.
    """
    if "groups" not in optimizer:
        return not isinstance(optimizer.get(setting), list | tuple)
    differs = any(setting in group for group in optimizer["groups"])
    return not differs or any(group["parameters"] for group in optimizer["groups"])


def _check_parameters(optimizer: Mapping[str, Any], setting: str) -> None:
    if not says_parameters(optimizer, setting):
        groups = optimizer.get("groups")
        values = optimizer[setting] if groups is None else [group.get(setting) for group in groups]
        raise RunDataError(
            f"groups of parameters had different {setting}, {values}, and the recording does not say which"
            f" parameters were in which: record the run again, or choose a method without {setting}"
        )


def _relative_gains(optimizer: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Of each group: what a gradient adds to all steps together, relative to the main group's; [1.] where
    groups are not known."""
    groups = optimizer.get("groups", ())
    if not groups:
        return np.ones(1)
    return np.array([_gain({**optimizer, **group}) for group in groups]) / _gain(optimizer)


def _gain(settings: Mapping[str, Any]) -> float:
    """The sum of the weights that a gradient has in this and all later steps; averages of Adam have 1."""
    if class_name(settings) != "SGD":
        return 1.0
    momentum = float(settings.get("momentum") or 0.0)
    return (1 - float(settings.get("dampening") or 0.0)) / (1 - momentum) if momentum else 1.0


def _named(run: Run, rates: Any) -> dict[str, float]:
    if "groups" not in run.optimizer:
        raise RunDataError(
            f"run {run.id!r} has learning rates of several groups of parameters, and does not say which"
            " parameters were in which"
        )
    return _values(run.optimizer, [float(rate) for rate in rates])


def _values(optimizer: Mapping[str, Any], values: list[float]) -> dict[str, float]:
    return {
        plain_name(name): value
        for group, value in zip(optimizer["groups"], values, strict=True)
        for name in group["parameters"]
    }
