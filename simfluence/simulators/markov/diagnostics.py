"""What a fit says about itself, kept beside its coefficients (plain values: saved as JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from simfluence.curriculum import Curriculum
from simfluence.kernels.threads import slices
from simfluence.ridge import RidgeSolution
from simfluence.simulators.markov.rollout import simulate_linear

Array = npt.NDArray[np.float64]

GROWTH = 10.0
"""More than this, along a recorded curriculum, counts as unstable."""

_CHUNK_BYTES = 2**26  # of responses held at once


class FitDiagnostics(TypedDict):
    """How well determined the coefficients are.

    rows_used, rows_left_out : transitions × test examples used, and without finite losses.
    columns : coefficients a test example.
    solver : "primal", "dual" or "iterative"; convergence : of the iterative one (tolerance, iterations,
        residual, failed), else None.
    singular : test examples without a unique solution.
    degrees_of_freedom : effective, tr((G + λP)⁻¹G), mean over test examples (estimated, see ridge).
    condition : of G + λP, estimate from below, median and largest over test examples.
    growth : the largest |∂L_t / ∂L_0| along recorded runs, for order 1 |α_1 ⋯ α_t|, median and largest over
        test examples (each its largest over runs); 1 where errors never grow.
    unstable : share of test examples whose growth is beyond ``GROWTH``.
    """

    rows_used: int
    rows_left_out: int
    columns: int
    solver: str
    convergence: dict[str, Any] | None
    singular: int
    degrees_of_freedom: float
    condition: tuple[float, float] | list[float]
    growth: tuple[float, float] | list[float]
    unstable: float


def fit_diagnostics(solution: RidgeSolution, growth: Array, rows_used: int, left_out: int) -> FitDiagnostics:
    """Gathered from a solution and :func:`largest_growth` [test]."""
    return FitDiagnostics(
        rows_used=rows_used,
        rows_left_out=left_out,
        columns=int(np.prod(solution.coefficients.shape[:2])),
        solver=solution.solver,
        convergence=None if solution.convergence is None else asdict(solution.convergence),
        singular=int(solution.singular.sum()),
        degrees_of_freedom=float(np.mean(solution.degrees_of_freedom)),
        condition=[float(np.median(solution.condition)), float(np.max(solution.condition))],
        growth=[float(np.median(growth)), float(np.max(growth))],
        unstable=float(np.mean(growth > GROWTH)),
    )


def largest_growth(
    curricula: Sequence[Curriculum],
    slope: Array,
    lags: Array | None,
    batch_size: float,
    rates: Array | None,
) -> Array:
    """The largest |∂L_t / ∂L_0| over runs and t, at least 1, [test]: rollouts from 1 without B.

    Arguments are as those of :func:`~simfluence.simulators.markov.rollout.simulate_linear`.
    """
    tests, threads = slope.shape[1], torch.get_num_threads()
    largest = np.ones(tests)
    longest = max(len(curriculum) for curriculum in curricula)
    share = max(1, _CHUNK_BYTES // (8 * (longest + 1) * tests * threads))
    # memory that is used again, not fresh memory for all
    for part in slices(len(curricula), share * threads):
        response = simulate_linear(
            curricula[part],
            np.ones((part.stop - part.start, tests)),
            slope,
            None,
            lags=lags,
            batch_size=batch_size,
            rates=None if rates is None else rates[part],
        )
        largest = np.maximum(largest, np.maximum(response.max(axis=(0, 1)), -response.min(axis=(0, 1))))
    return np.clip(np.nan_to_num(largest, nan=np.inf), 1.0, np.exp(700.0))
