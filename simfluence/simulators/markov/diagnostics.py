"""What a fit says about itself, kept beside its coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simfluence.curriculum import Curriculum
from simfluence.ridge import RidgeSolution
from simfluence.ridge.problem import Array
from simfluence.runs import Transitions
from simfluence.simulators.markov.rollout import simulate_linear

UNSTABLE = 10.0
"""A model under which differences in the initial losses grow by more than this factor counts as unstable."""


def fit_diagnostics(rows: Transitions, solution: RidgeSolution, growth: Array) -> dict[str, Any]:
    """How well determined the coefficients are.

    Parameters
    ----------
    growth : what :func:`largest_growth` returns.

    Returns
    -------
    rows_used, rows_left_out : transitions × test examples that were fitted, and that missing losses cost.
    columns : coefficients of a test example.
    solver : "iterative" or "cholesky". iterations : of the slowest system.
    residual : the largest that iterations left, relative (see :class:`~simfluence.ridge.RidgeSolution`).
    singular : test examples whose fit has no unique solution.
    growth : median and largest over test examples. At 1, errors in the losses never grow.
    unstable : share of test examples whose growth is above ``UNSTABLE``.
    """
    return {
        "rows_used": int(rows.observed.sum()),
        "rows_left_out": rows.missing,
        "columns": int(np.prod(solution.coefficients.shape[1:3])),
        "solver": solution.solver,
        "iterations": solution.iterations,
        "residual": float(solution.residual.max()),
        "singular": int(solution.singular.sum()),
        "growth": [float(np.median(growth)), float(np.max(growth))],
        "unstable": float(np.mean(growth > UNSTABLE)),
    }


def largest_growth(curricula: Sequence[Curriculum], slope: Array, batch_size: float) -> Array:
    """The largest |∂L_t / ∂L_0| over runs and steps, at least 1, float [test]: simulations from 1 without B.

    The arguments are those of :func:`~simfluence.simulators.markov.rollout.simulate_linear`.
    """
    start = np.ones((len(curricula), slope.shape[1]))
    response = simulate_linear(curricula, start, slope, None, batch_size)
    largest = np.maximum(response.max(axis=(0, 1)), -response.min(axis=(0, 1)))
    return np.clip(np.nan_to_num(largest, nan=np.inf), 1.0, np.exp(700.0))
