"""Parameter groups: the learning rates and settings that an optimizer had for each parameter of a run.

Where groups differ, ``Run.group_rates`` has their rates and ``Run.optimizer["groups"]`` says which parameters
are in which; parameters in no group were not trained, so that their rate is 0. The results here are mappings
parameter → value, empty if all parameters have the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simfluence.errors import RunDataError
from simfluence.recording.wrappers import plain_name
from simfluence.runs import Run


def rates_at(run: Run, step: int) -> dict[str, float]:
    """The learning rate of each parameter in a step."""
    return {} if run.group_rates is None else _named(run, run.group_rates[step])


def relative_rates(run: Run) -> dict[str, float]:
    """The learning rate of each parameter, summed over the run and relative to the sum of
    ``run.learning_rate``; of SGD, each times 1/(1 − momentum), what a gradient adds to all steps together.

    Raises RunDataError if rates or momenta differ between groups and the recording does not say which
    parameters they have.
    """
    optimizer = run.optimizer
    momenta = setting_by_parameter(optimizer, "momentum")
    if run.group_rates is not None:
        rates = _named(run, run.group_rates.sum(0) / np.sum(run.learning_rate))
    else:
        setting_by_parameter(optimizer, "lr")  # raises where it is not known whose rates they are
        rates = dict.fromkeys(momenta, 1.0)
    if momenta:
        main = 1 - float(optimizer.get("momentum") or 0.0)
        rates = {name: rate * main / (1 - momenta[name]) for name, rate in rates.items()}
    return rates


def setting_by_parameter(optimizer: Mapping[str, Any], setting: str) -> dict[str, float]:
    """The value of a setting (a number) that each parameter has.

    Raises RunDataError if groups have different ones and the recording does not say which parameters were in
    which.
    """
    if not says_parameters(optimizer, setting):
        raise RunDataError(
            f"groups of parameters had different {setting}, {optimizer[setting]}, and the recording does not"
            f" say which parameters were in which: record the run again, or choose a method without {setting}"
        )
    groups = optimizer.get("groups")
    if not any(setting in group for group in groups or ()):
        return {}
    main = optimizer.get(setting)
    values = [group.get(setting, main) for group in groups or ()]
    return {} if len(set(values)) == 1 else _values(optimizer, [float(value or 0.0) for value in values])


def says_parameters(optimizer: Mapping[str, Any], setting: str) -> bool:
    """Whether it is known which parameters have which value of a setting that is a number.

    Earlier recordings have a list of the groups' values, and no "groups".
    """
    return "groups" in optimizer or not isinstance(optimizer.get(setting), list | tuple)


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
