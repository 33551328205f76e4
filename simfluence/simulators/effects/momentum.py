"""The optimizer's momentum: which batches act at a step (METHODS §5).

Momentum and Adam do not move the weights along the gradient of the current batch but along an average
of past ones, m_t = β m_{t-1} + (1 − β) g_t. Gradients add up over examples, so the same average of the
*counts* says how much each example acts at step t:

    m_t = β m_{t-1} + (1 − β) u_t,        m̂_t = m_t / (1 − βᵗ)   if the optimizer corrects its bias

u_t [train] are the counts of batch t, scaled to the usual batch size (a loss is averaged over its
batch). Plain SGD has β = 0 and m̂ = u: the published features. Where the learning rate varies, m̂_t is
multiplied by the rate relative to its mean over the recorded steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, count_matrix
from simfluence.runs import RunSet

Array = npt.NDArray[np.float64]

USUAL_MOMENTUM = 0.9  # Adam's default β₁, where the optimizer is not known
_ADAM = ("adam", "adamw", "nadam", "radam", "adamax", "adafactor", "lamb")


def optimizer_momentum(optimizer: Mapping[str, Any]) -> tuple[float, bool] | None:
    """(β, whether the bias is corrected) of a recorded optimizer; None where they are not known.

    Parameters
    ----------
    optimizer : ``Run.optimizer``: its class, and ``betas`` or ``momentum``.
    """
    name = str(optimizer.get("class", "")).rsplit(".", 1)[-1].lower()
    betas = optimizer.get("betas")
    if isinstance(betas, Sequence) and betas and betas[0] is not None and any(key in name for key in _ADAM):
        return float(betas[0]), True
    if "sgd" in name or name == "rmsprop":
        return float(optimizer.get("momentum") or 0.0), False
    return None


def recorded_momentum(runs: RunSet) -> tuple[float, bool] | None:
    """The momentum that all runs share; None where it is unknown or differs."""
    found = {optimizer_momentum(run.optimizer) for run in runs}
    return found.pop() if len(found) == 1 else None


def momentum_counts(curriculum: Curriculum, beta: float, corrected: bool, batch_size: float) -> Array:
    """m̂, float [step, train]; every row of a corrected one sums to ``batch_size``.

    Raises ValueError unless 0 ≤ β < 1.
    """
    check_beta(beta)
    return momentum_average(count_matrix([curriculum], batch_size).toarray(), beta, corrected)


def momentum_average(counts: Array, beta: float, corrected: bool) -> Array:
    """The recursion above over the first axis of u [step, …]."""
    if beta == 0.0:
        return counts
    averaged = np.empty_like(counts)
    moment = np.zeros(counts.shape[1:])
    for step, row in enumerate(counts):
        moment = beta * moment + (1 - beta) * row
        averaged[step] = moment / (1 - beta ** (step + 1)) if corrected else moment
    return averaged


def check_beta(beta: float) -> None:
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"a momentum β must lie in 0 ≤ β < 1, got {beta}")


def relative_rates(runs: RunSet) -> Array:
    """float [step]: the learning rate relative to its mean, averaged over the runs that log it.

    1 where no run does. Simulated curricula are assumed to follow this schedule; after its end the
    last rate goes on.
    """
    steps = max(len(run) for run in runs)
    rates = np.full((len(runs), steps), np.nan)
    for number, run in enumerate(runs):
        rates[number, : len(run)] = run.learning_rate
    known = np.isfinite(rates)
    mean = np.where(known, rates, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    known_at = known.any(0)
    if not known_at.any() or mean[known_at].mean() <= 0:
        return np.ones(steps)
    return np.where(known_at, mean / mean[known_at].mean(), 1.0)
