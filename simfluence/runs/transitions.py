"""Recorded runs as rows of a regression: what was consumed between two evaluations, and both losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.curriculum import count_matrix
from simfluence.runs.run import Run

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Transitions:
    """One row for each transition L_{t-1} → L_t between evaluations, one run after the other.

    counts : sparse [row, train], how often each example was consumed in between, scaled as
        :func:`transitions` says.
    previous, current : [row, test], the losses before and after; 0 where one of them is not finite.
    observed : bool [row, test], whether both are finite.
    run : int [row], the number of the run a row belongs to.
    """

    counts: sparse.csr_array
    previous: Array
    current: Array
    observed: npt.NDArray[np.bool_]
    run: npt.NDArray[np.int64]


def transitions(runs: Sequence[Run], batch_size: float | None = None) -> Transitions:
    """The transitions of these runs. Counts are summed over the steps between two evaluations.

    ``batch_size`` scales the counts of every step, as in :func:`~simfluence.curriculum.count_matrix`.
    """
    previous = np.concatenate([run.loss[:-1] for run in runs], dtype=np.float64)
    current = np.concatenate([run.loss[1:] for run in runs], dtype=np.float64)
    observed = np.isfinite(previous) & np.isfinite(current)
    if not observed.all():
        previous[~observed] = current[~observed] = 0.0
    return Transitions(
        counts=sparse.vstack([_interval_counts(run, batch_size) for run in runs]).tocsr(),
        previous=previous,
        current=current,
        observed=observed,
        run=np.repeat(np.arange(len(runs)), [len(run.evaluated) - 1 for run in runs]),
    )


def _interval_counts(run: Run, batch_size: float | None) -> sparse.csr_array:
    """The counts summed over the steps of each interval between evaluations."""
    counts = count_matrix([run.curriculum], batch_size)
    if run.every_step:
        return counts
    intervals = len(run.evaluated) - 1
    step = np.arange(len(run))
    interval = np.searchsorted(run.evaluated, step, side="right") - 1
    inside = (interval >= 0) & (interval < intervals)
    summing = sparse.csr_array(
        (np.ones(inside.sum()), (interval[inside], step[inside])), shape=(intervals, len(run))
    )
    return (summing @ counts).tocsr()
