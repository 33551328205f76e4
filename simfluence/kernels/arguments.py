"""What the compiled loops of training dynamics take; to import this compiles nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

KAPPA, BETA, ETA, POWER, RATES = range(5)
"""Where the parameters stand; those of log γ begin at ``RATES``."""

GAIN = (0.1, 10.0)
"""Bounds of the gain a: two layers can run away where rates are absurd."""


class Batches(NamedTuple):
    """Curricula one after the other: rows of examples, where each batch begins and ends, the steps of each
    run.
    """

    indices: IntArray
    bounds: IntArray
    lengths: IntArray


class Dynamics(NamedTuple):
    """Everything that a run follows from.

    factors : u [example, k], before the power of the spectrum. metric : σ^{2q} [k]. rates, kept : γ [run,
        step] and α [step].
    """

    factors: Array
    metric: Array
    rates: Array
    kept: Array
    beta: float
    bias_correction: bool
    feedback: float
    growth: float
    start: float


class Parameters(NamedTuple):
    """What derivatives are taken by.

    log_metric : ∂ log σ^{2q} / ∂q = 2 log σ [k]. log_rates, log_kept : ∂ log γ and ∂ log α by their
        parameters, [step, parameter].
    begins : [parameter], the first step at which each has an effect; empty for no derivatives.
    """

    log_metric: Array
    log_rates: Array
    log_kept: Array
    begins: IntArray
