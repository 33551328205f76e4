"""One step of an optimizer, for many runs at once: SGD with momentum, Adam or AdamW as in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simfluence.errors import RunDataError
from simfluence.runs import RunSet


@dataclass(frozen=True)
class Update:
    """The settings of an optimizer, named as torch names them.

    adam : Adam or AdamW; False is SGD. decoupled : weight decay acts on the weights, not on the gradient.
    """

    adam: bool
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False

    @classmethod
    def of(cls, optimizer: Mapping[str, Any]) -> Update:
        """That of a recorded optimizer (``Run.optimizer``).

        Raises RunDataError unless it is SGD, Adam or AdamW, without amsgrad, with one group of settings.
        """
        name = str(optimizer.get("class", "")).rsplit(".", 1)[-1]
        if name not in ("SGD", "Adam", "AdamW") or optimizer.get("amsgrad") or optimizer.get("maximize"):
            raise RunDataError(
                "the linearised model takes SGD, Adam or AdamW, without amsgrad or maximize; recorded was"
                f" {dict(optimizer) or 'nothing'}"
            )
        numbers = {key: optimizer.get(key, 0.0) for key in ("momentum", "dampening", "weight_decay")}
        numbers["eps"] = optimizer.get("eps", 1e-8)
        numbers["beta1"], numbers["beta2"] = optimizer.get("betas", (0.9, 0.999))[:2]
        if "groups" in optimizer or not all(isinstance(value, int | float) for value in numbers.values()):
            raise RunDataError(f"expected one optimizer with one group of settings, got {dict(optimizer)}")
        return cls(
            adam=name != "SGD",
            nesterov=bool(optimizer.get("nesterov", False)),
            decoupled=name == "AdamW" or bool(optimizer.get("decoupled_weight_decay", False)),
            **{key: float(value) for key, value in numbers.items()},
        )

    @classmethod
    def of_runs(cls, runs: RunSet) -> Update:
        """The one that all runs share; RunDataError if they differ, or as ``of``."""
        updates = {cls.of(run.optimizer) for run in runs}
        if len(updates) > 1:
            raise RunDataError("the runs were trained by different optimizers; expected one")
        return updates.pop()

    def __call__(
        self, weights: Tensor, gradient: Tensor, averages: tuple[Tensor, Tensor], rate: Tensor, step: int
    ) -> None:
        """Takes one step, in place.

        weights, gradient : [run, weight]. averages : two such arrays, of past gradients and of their squares;
        zeros before the first step. rate : learning rates [run, 1]. step : from 1.
        """
        first, second = averages
        if self.weight_decay and self.decoupled:
            weights.mul_(1 - rate * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient + self.weight_decay * weights
        if self.adam:
            first.lerp_(gradient, 1 - self.beta1)
            second.lerp_(gradient.square(), 1 - self.beta2)
            size = torch.sqrt(second / (1 - self.beta2**step)) + self.eps
            gradient = first / (1 - self.beta1**step) / size
        elif self.momentum:
            first.mul_(self.momentum).add_(gradient, alpha=1.0 if step == 1 else 1 - self.dampening)
            gradient = gradient + self.momentum * first if self.nesterov else first
        weights.sub_(rate * gradient)
