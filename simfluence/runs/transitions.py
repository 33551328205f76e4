"""Recorded runs as rows of a regression: what was consumed between two evaluations, and both losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.curriculum import count_matrix
from simfluence.runs.run import Run

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Transitions:
    """One row for each transition L_s → L_t between two evaluations, one run after the other.

    A row is about the test examples that were evaluated at both, and not in between. Where all are evaluated
    every time, there is one row for each evaluation after the first.

    counts : sparse [row, train], how often each example was consumed in between, scaled as
        :func:`transitions` says.
    previous, current : [row, test], the losses before and after; 0 where the row is not about the example.
    observed : bool [row, test], whether it is.
    run : int [row], the number of the run a row belongs to.
    missing : how many more transitions there would be, over all test examples, if all losses were known.
    """

    counts: sparse.csr_array
    previous: Array
    current: Array
    observed: npt.NDArray[np.bool_]
    run: npt.NDArray[np.int64]
    missing: int


def transitions(runs: Sequence[Run], batch_size: float | None = None) -> Transitions:
    """The transitions of these runs. Counts are summed over the steps between two evaluations.

    ``batch_size`` scales the counts of every step, as in :func:`~simfluence.curriculum.count_matrix`.
    """
    each = [_of_run(run, batch_size) for run in runs]
    counts, previous, current, observed = zip(*each, strict=True)
    return Transitions(
        counts=sparse.vstack(counts).tocsr(),
        previous=np.concatenate(previous),
        current=np.concatenate(current),
        observed=np.concatenate(observed),
        run=np.repeat(np.arange(len(runs)), [len(rows) for rows in observed]),
        missing=sum(run.loss[1:].size for run in runs) - sum(int(about.sum()) for about in observed),
    )


def _of_run(
    run: Run, batch_size: float | None
) -> tuple[sparse.csr_array, Array, Array, npt.NDArray[np.bool_]]:
    """Counts, previous, current and observed of one run."""
    losses, known = run.loss.astype(np.float64), np.isfinite(run.loss)
    begins, ends = np.arange(len(losses) - 1), np.arange(1, len(losses))
    observed = known[:-1] & known[1:]
    if not known.all():
        begins, ends, observed = _between_known(known)
    counts = count_matrix([run.curriculum], batch_size)
    if not run.every_step or not known.all():
        counts = _summed(counts, run.evaluated[begins], run.evaluated[ends])
    previous, current = (np.where(observed, losses[at], 0.0) for at in (begins, ends))
    return counts, previous, current, observed


def _between_known(known: npt.NDArray[np.bool_]) -> tuple[IntArray, IntArray, npt.NDArray[np.bool_]]:
    """The evaluations that rows begin and end at, [row] each, and which test examples each is about.

    known : bool [evaluation, test].
    """
    about: dict[tuple[int, int], npt.NDArray[np.bool_]] = {}
    patterns, of = np.unique(known, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        for pair in pairwise(np.flatnonzero(pattern).tolist()):
            about[pair] = about.get(pair, np.zeros(known.shape[1], bool)) | (of.reshape(-1) == number)
    pairs = sorted(about)
    begins, ends = np.array(pairs, np.int64).reshape(-1, 2).T
    return begins, ends, np.array([about[pair] for pair in pairs], bool).reshape(-1, known.shape[1])


def _summed(counts: sparse.csr_array, begins: IntArray, ends: IntArray) -> sparse.csr_array:
    """The counts [step, train] summed from each of these steps to its end, [row, train]."""
    steps = [np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)]
    offsets = np.cumsum([0, *map(len, steps)])
    columns = np.concatenate([np.empty(0, np.int64), *steps])
    summing = sparse.csr_array((np.ones(len(columns)), columns, offsets), shape=(len(steps), counts.shape[0]))
    return (summing @ counts).tocsr()
