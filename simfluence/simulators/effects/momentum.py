"""The optimizer's momentum: which batches act at a step (analysis/METHODS.md, "Momentum").

Momentum and Adam do not move the weights along the gradient of the current batch but along an average of past
ones, m_t = β m_{t-1} + (1 − β) g_t. Gradients add up over examples, so the same average of the *counts* is
how much each example acts at step t:

    m_t = β m_{t-1} + (1 − β) u_t,        m̂_t = m_t / (1 − βᵗ)   if the optimizer corrects its bias

u_t [train] are the counts of batch t, scaled to the usual batch size (a loss is averaged over its batch).
Plain SGD has β = 0 and m̂ = u: the published features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simfluence.runs import RunSet
from simfluence.simulators.state import saved

_ADAM = ("adam", "adamw", "nadam", "radam", "adamax", "adafactor", "lamb")


@saved
@dataclass(frozen=True)
class Momentum:
    """β, and whether the optimizer divides by 1 − βᵗ."""

    beta: float
    bias_correction: bool

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(f"a momentum β must lie in 0 ≤ β < 1, got {self.beta}")


USUAL = Momentum(0.9, True)
"""Adam's default β₁: taken where the optimizer is not known."""


def optimizer_momentum(optimizer: Mapping[str, Any]) -> Momentum | None:
    """The momentum of a recorded optimizer (``Run.optimizer``: its class, and ``betas`` or ``momentum``).

    A setting is a list with one entry a parameter group where groups differ. None where the momentum is not
    known, or differs between groups.
    """
    name = str(optimizer.get("class", "")).rsplit(".", 1)[-1].lower()
    betas = optimizer.get("betas")
    if isinstance(betas, Sequence) and len(betas) and any(key in name for key in _ADAM):
        first = {group[0] if isinstance(group, Sequence) else betas[0] for group in betas}
        beta = first.pop() if len(first) == 1 else None
        return Momentum(float(beta), True) if isinstance(beta, int | float) else None
    if "sgd" in name or name == "rmsprop":
        momentum = optimizer.get("momentum") or 0.0
        return Momentum(float(momentum), False) if isinstance(momentum, int | float) else None
    return None


def recorded_momentum(runs: RunSet) -> Momentum | None:
    """The momentum that all runs share; None where it is not known or differs."""
    found = {optimizer_momentum(run.optimizer) for run in runs}
    return found.pop() if len(found) == 1 else None
