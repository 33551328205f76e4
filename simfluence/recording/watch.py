"""What the optimizers did since the last recorded step: whether they trained, and at which rates.

torch calls a hook after every step of an optimizer. Such a step trained nothing if no parameter had a
gradient (Lightning steps like this after a batch without a loss) or if a gradient scaler found infinities.
Some optimizers do their work elsewhere, so that no hook is called: the version counters of the weights, which
every change in place raises, then say that something was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from simfluence.recording.wrappers import parameter_names


@dataclass(frozen=True)
class Taken:
    """What happened since the last recorded step.

    trained : False if it is certain that no weight was changed.
    rates : the learning rate of every parameter group of all optimizers, one after the other; 0 for an
        optimizer that did not step, NaN where it is not known; () without an optimizer.
    """

    trained: bool
    rates: tuple[float, ...] = ()


class OptimizerWatch:
    """Follows the optimizers of a run between :meth:`start` and :meth:`end`.

    main : the number of the parameter group whose settings and rate stand for the run: of those with a
        rate above 0 the one with the most trained parameters.
    names : the names of the plain model's parameters as the run began, by the parameters' ``id()``.
    trained : the parameters that had a gradient in some step, by their ``id()``.
    """

    def __init__(self, optimizers: Sequence[Optimizer], model: Any) -> None:
        self.optimizers = list(optimizers)
        self.main = _main_group(self.groups)
        self.names = parameter_names(model)
        self.trained: set[int] = set()
        self._parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
        self._hooks: list[RemovableHandle] = []
        self._rates: dict[int, float] = {}  # of each group, by its id()
        self._version = 0

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, one after the other."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def start(self) -> None:
        self._hooks = [optimizer.register_step_post_hook(self._note) for optimizer in self.optimizers]
        self._version = self._versions()

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def taken(self) -> Taken:
        """What happened since :meth:`start` or the last call of this method."""
        noted, self._rates = self._rates, {}
        before, self._version = self._version, self._versions()
        if not self.optimizers:
            return Taken(True)
        if not noted and self._version != before:
            return Taken(True, (float("nan"),) * len(self.groups))
        return Taken(bool(noted), tuple(noted.get(id(group), 0.0) for group in self.groups))

    def _note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # set by a GradScaler for fused optimizers
        if found_inf is not None and float(found_inf) > 0:
            return
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        if stepped:
            self.trained |= stepped
            # all groups, or one of them after the other, as DeepSpeed's ZeRO does
            self._rates |= {id(group): float(group["lr"]) for group in optimizer.param_groups}

    def _versions(self) -> int:
        of_groups = [p for group in self.groups for p in group["params"]]
        return sum(p._version for p in self._parameters + of_groups if not p.is_inference())


def _main_group(groups: Sequence[dict[str, Any]]) -> int:
    def weight(number: int) -> tuple[bool, int]:
        group = groups[number]
        rate = float(group.get("initial_lr", group["lr"]))  # a schedule may begin at 0
        return rate > 0, sum(p.numel() for p in group["params"] if p.requires_grad)

    return max(range(len(groups)), key=weight, default=0)


def innermost(optimizer: Any) -> Optimizer:
    """The torch optimizer inside what accelerate, DeepSpeed or Lightning made of it."""
    found: Optimizer | None = None
    inside = optimizer
    while inside is not None:
        found = inside if isinstance(inside, torch.optim.Optimizer) else found
        inside = getattr(inside, "optimizer", None)
    if found is None:
        raise TypeError(f"expected a torch optimizer, got {type(optimizer).__name__}")
    return found
