"""One kernel of training dynamics from several arrays of scores, taken at several steps of a recorded run.

As a model learns, its kernel changes, and scores at the start say little about the end. Scores S_1 … S_c, in
the order of the steps that they were taken at, give four kernels:

    S_1                 those at the first step
    mean S_s / |S_s|    |·| is the root mean square
    mean M_s / |M_s|    M_s = D S_s D', with diagonal D and D' such that rows and columns of M_s have the
                        norms of those of S_1
    the sum of these three, each divided by its root mean square

D takes out of S_s how far the run had learnt each example by then (its residual, which dynamics predict for
every run by themselves): where the kernel does not change, M_s = S_1. The kernel is that whose dynamics are
nearest to the recorded runs; they have about 22 free numbers whatever the kernel.
"""

from __future__ import annotations

import numpy as np

from simfluence.simulators.dynamics.fit import Fitted, fit_dynamics
from simfluence.simulators.effects.data import FEWEST_RUNS, Array, TrainingData

_SWEEPS = 20


def fit_scores(scores: Array, data: TrainingData) -> tuple[Fitted, Array]:
    """The dynamics nearest to the recorded runs, and their kernel [train, test].

    scores : [array, train, test], one array or more; positive lowers the loss, any units.
    """
    few = len(data.train) < FEWEST_RUNS
    fits = [(fit_dynamics(-kernel, data, changing=True, whole=few), kernel) for kernel in kernels(scores)]
    return min(fits, key=lambda pair: pair[0].misfit)


def kernels(scores: Array) -> list[Array]:
    """The kernels that scores [array, train, test] give; one array is its own kernel, none gives zeros."""
    if len(scores) < 2:
        return [scores[0] if len(scores) else scores.sum(0)]
    several = [scores[0], _mean(scores), _mean(matched(scores))]
    return [*several, _mean(np.stack(several))]


def matched(scores: Array) -> Array:
    """M_s [array, train, test], by dividing norms out of rows and columns in turn (Sinkhorn & Knopp 1967)."""
    rows, columns = _norms(scores[:1], 2), _norms(scores[:1], 1)
    for _ in range(_SWEEPS):
        scores = scores * (rows / _norms(scores, 2))
        scores = scores * (columns / _norms(scores, 1))
    return scores


def _norms(scores: Array, axis: int) -> Array:
    """Root mean squares over an axis, which stays; a little more than 0."""
    squares = np.square(scores)
    return np.sqrt(squares.mean(axis, keepdims=True)) + 1e-9 * np.sqrt(squares.mean()) + 1e-300


def _mean(scores: Array) -> Array:
    size = np.sqrt(np.square(scores).mean((1, 2), keepdims=True))
    return np.asarray((scores / np.maximum(size, 1e-300)).mean(0), np.float64)
