"""What a fit says about itself, kept beside its coefficients (plain values: saved as JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from simfluence.simulators.ridge import RidgeSolution

Array = npt.NDArray[np.float64]

GROWTH = 10.0
"""A product of |α| beyond this, along a recorded curriculum, counts as unstable."""


class FitDiagnostics(TypedDict):
    """How well determined the coefficients are.

    rows_used, rows_left_out : transitions × test examples used, and without finite losses.
    columns : coefficients a test example.
    solver : "primal", "dual" or "iterative"; convergence : of the iterative one (tolerance, iterations,
        residual, failed), else None.
    singular : test examples without a unique solution.
    degrees_of_freedom : effective, tr((G + λP)⁻¹G), mean over test examples (estimated, see ridge).
    condition : of G + λP, estimate from below, median and largest over test examples.
    growth : the largest product |α_1 ⋯ α_t| from the start of a recorded run, median and largest over test
        examples (each its largest over runs); 1 where errors never grow.
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


def largest_growth(alphas: Sequence[Array]) -> Array:
    """max over runs and t of |α_1 ⋯ α_t|, at least 1; α of each run [step, test] → [test]."""
    largest = np.zeros(alphas[0].shape[1])
    with np.errstate(divide="ignore"):
        for alpha in alphas:
            np.maximum(largest, np.cumsum(np.log(np.abs(alpha)), axis=0).max(axis=0), out=largest)
    return np.exp(np.minimum(largest, 700.0))
