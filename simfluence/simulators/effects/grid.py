"""From recorded runs to regression rows: loss increments on a common grid of steps, per run.

Losses are recorded at the steps of a grid g_0 = 0 < g_1 < … (every step, or every k-th, or fewer so
that the number of rows stays affordable: features and increments then add up over an interval, and
nothing is lost but resolution). Row j of a run is its increment from g_{j-1} to g_j.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from simfluence.errors import RunDataError
from simfluence.runs import RunSet
from simfluence.runs.run import Run

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recorded:
    """The runs on a grid.

    grid : int [point], ascending, starts at 0.
    losses : one float [point, test] a run, up to the last point it reached; finite.
    """

    grid: IntArray
    losses: list[Array]

    @property
    def runs(self) -> list[slice]:
        """The rows of each run, one fewer than its points."""
        ends = np.cumsum([0] + [len(losses) - 1 for losses in self.losses])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    @property
    def interval(self) -> IntArray:
        """int [row]: which interval of the grid a row is about (0: the first)."""
        return np.concatenate([np.arange(len(losses) - 1) for losses in self.losses])


def record_on_grid(runs: RunSet, max_rows: int) -> Recorded:
    """The runs on a grid with at most about ``max_rows`` rows in all.

    Losses that are missing or not finite are interpolated between a run's neighbouring ones.

    Raises RunDataError if a run has no later losses than those before its first step, or a test
    example no finite loss in a run.
    """
    grid = _grid(runs, max_rows)
    return Recorded(grid, [_on_grid(run, grid) for run in runs])


def _grid(runs: RunSet, max_rows: int) -> IntArray:
    ends = np.array([run.evaluated[-1] for run in runs])
    if (ends == 0).any():
        run = runs[int(np.argmin(ends))]
        raise RunDataError(f"run {run.id!r} has no losses after its first step: nothing to fit")
    evaluated = np.zeros(ends.max() + 1)
    for run in runs:
        evaluated[run.evaluated] += 1
    reached = (ends[:, None] >= np.arange(len(evaluated))).sum(0)
    usual = evaluated >= reached / 2
    usual[[0, -1]] = True
    points = np.flatnonzero(usual)
    rows = sum(int((points <= end).sum()) - 1 for end in ends)
    stride = -(-rows // max(max_rows, 1))
    return np.unique(np.append(points[::stride], points[-1]))


def _on_grid(run: Run, grid: IntArray) -> Array:
    points = grid[grid <= run.evaluated[-1]]
    if len(points) < 2:
        points = grid[:2]
    losses = np.empty((len(points), run.loss.shape[1]))
    run.initial_loss  # noqa: B018 (raises if they were not recorded)
    for z, values in enumerate(run.loss.T.astype(np.float64)):
        known = np.isfinite(values)
        if not known.any():
            raise RunDataError(f"run {run.id!r} has no finite loss of test example {z}; leave the run out")
        losses[:, z] = np.interp(points, run.evaluated[known], values[known])
    return losses


def sum_over_intervals(features: Array, grid: IntArray) -> Array:
    """float [interval, column]: features [step, …] added up between grid points (up to their end)."""
    points = grid[grid <= len(features)]
    if len(points) < 2:
        return features.sum(0, keepdims=True)
    return (
        np.add.reduceat(features, points[:-1], axis=0)
        if points[-1] == len(features)
        else (np.add.reduceat(features, points, axis=0)[:-1])
    )


def smooth(values: Array, window: int) -> Array:
    """Moving average over the first axis, the ends repeated."""
    half = max(int(window) // 2, 0)
    padded = np.concatenate([np.repeat(values[:1], half, 0), values, np.repeat(values[-1:], half, 0)])
    total = np.cumsum(np.concatenate([np.zeros_like(padded[:1]), padded]), axis=0)
    return (total[2 * half + 1 :] - total[: len(values)]) / (2 * half + 1)
