"""Recorded losses on a common grid of steps (analysis/METHODS.md, "Effects").

The grid g_0 = 0 < g_1 < … has every step at which a run was evaluated, or fewer, so that the number of rows
of a regression stays affordable. Row j of a run is what happened in the interval from g_{j-1} to g_j: the
increment of its losses, and everything that its batches consumed. Nothing is lost but resolution in time.

Missing losses: what is known between two known losses of a test example is their difference. What a run
differs from the mean of the runs by is interpolated linearly: it is spread evenly over the steps in between.
Where runs were evaluated at different steps, what a run consumed between two of its evaluations is spread
evenly too (``spread``), so that rows of losses and of what was consumed belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from simfluence.errors import RunDataError
from simfluence.runs import RunSet
from simfluence.runs.run import Run

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GridLosses:
    """The losses of several runs on a grid.

    grid : int [point], ascending, starts at 0.
    losses : one float [point, test] a run, up to the last point that it reached; finite.
    evaluated : one int [evaluation] a run, the steps after which it has losses.
    known : one bool [point, test] a run, whether a loss of the test example was recorded there (or nearest to
        there); None for a run whose evaluations are all of all test examples.
    """

    grid: IntArray
    losses: list[Array]
    evaluated: list[IntArray]
    known: list[npt.NDArray[np.bool_] | None]

    def as_known(self, number: int, values: Array) -> Array:
        """What would be known of other values [point, test] of a run, were they recorded as its losses: those
        of a test example at its own evaluations, and a straight line in between.
        """
        known = self.known[number]
        if known is None:
            return values
        points = np.arange(len(values))
        columns = [
            np.interp(points, np.flatnonzero(at), column[at])
            for at, column in zip(known.T, values.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    @property
    def between(self) -> float:
        """How many points there are from one recorded loss of a test example to its next, the mean; 1 where
        all test examples are evaluated every time.
        """
        gaps = [
            (len(known) - 1) * known.shape[1] / max(int(known[1:].sum()), 1)
            for known in self.known
            if known is not None
        ]
        return float(np.mean(gaps)) if gaps else 1.0

    @property
    def rows(self) -> list[slice]:
        """Where the rows (intervals) of each run stand when all runs' rows are put one below the other."""
        ends = np.cumsum([0] + [len(losses) - 1 for losses in self.losses])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    @property
    def interval(self) -> IntArray:
        """int [row]: which interval of the grid a row is about; 0 is the first."""
        return np.concatenate([np.arange(len(losses) - 1) for losses in self.losses])


def losses_on_grid(runs: RunSet, max_rows: int) -> GridLosses:
    """The losses of the runs on a grid with at most about ``max_rows`` rows in all.

    Raises RunDataError if a run has no losses after its first step, or a test example no finite loss in a
    run.
    """
    evaluated = [run.evaluated[np.isfinite(run.loss).any(1)] for run in runs]
    grid = _grid(runs, evaluated, max_rows)
    mean = np.zeros((len(grid), len(runs.test)))
    for _ in range(2):  # the mean is first that of losses that were interpolated along nothing
        losses = [_on_grid(run, own, grid, mean) for run, own in zip(runs, evaluated, strict=True)]
        start = np.mean([run[0] for run in losses], axis=0)
        drift = mean_over_runs([np.diff(run, axis=0) for run in losses])
        mean = start + np.concatenate([0 * start[None], np.cumsum(drift, axis=0)])
    known = [_known_at(run, grid[: len(own)]) for run, own in zip(runs, losses, strict=True)]
    return GridLosses(grid, losses, evaluated, known)


def spread(consumed: Array, evaluated: IntArray, grid: IntArray) -> Array:
    """What a run consumed between its evaluations [evaluation − 1, train], spread evenly over the steps in
    between and summed over the intervals of the grid, [interval, train].
    """
    begins = np.maximum(grid[:-1, None], evaluated[:-1])
    ends = np.minimum(grid[1:, None], evaluated[1:])
    return np.asarray(np.maximum(ends - begins, 0) / np.diff(evaluated) @ consumed, np.float64)


def _grid(runs: RunSet, evaluated: list[IntArray], max_rows: int) -> IntArray:
    ends = np.array([own[-1] if len(own) else 0 for own in evaluated])
    if (ends == 0).any():
        run = runs[int(np.argmin(ends))]
        raise RunDataError(f"run {run.id!r} has no losses after its first step: nothing to fit")
    points = np.unique(np.concatenate([[0], *evaluated]))
    rows = sum(int((points <= end).sum()) - 1 for end in ends)
    stride = max(round(rows / max(max_rows, 1)), 1)
    return np.unique(np.append(points[::stride], points[-1]))


def _on_grid(run: Run, evaluated: IntArray, grid: IntArray, mean: Array) -> Array:
    """[point, test]; between known losses the deviation from ``mean`` [point, test] is linear."""
    points = grid[grid <= evaluated[-1]]
    if len(points) < 2:
        points = grid[:2]
    losses = np.empty((len(points), len(mean[0])))
    run.initial_loss  # noqa: B018 (raises if they were not recorded)
    for z, values in enumerate(run.loss.T.astype(np.float64)):
        known = np.isfinite(values)
        if not known.any():
            raise RunDataError(f"run {run.id!r} has no finite loss of test example {z}; leave the run out")
        at = run.evaluated[known]
        straight = np.interp(points, at, np.interp(at, grid, mean[:, z]))
        losses[:, z] = np.interp(points, at, values[known]) + (mean[: len(points), z] - straight)
    return losses


def _known_at(run: Run, points: IntArray) -> npt.NDArray[np.bool_] | None:
    """``GridLosses.known`` of one run."""
    finite = np.isfinite(run.loss)
    if finite[finite.any(1)].all():
        return None
    nearest = np.round(np.interp(run.evaluated, points, np.arange(len(points)))).astype(np.int64)
    known = np.zeros((len(points), run.loss.shape[1]), bool)
    np.logical_or.at(known, nearest, finite)
    return known


def mean_over_runs(series: Sequence[Array]) -> Array:
    """The mean at every point over the series [point, column] that got so far; NaN does not count."""
    total = np.zeros((max(len(values) for values in series), series[0].shape[1]))
    count = np.zeros_like(total)
    for values in series:
        known = np.isfinite(values)
        total[: len(values)] += np.where(known, values, 0.0)
        count[: len(values)] += known
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count, np.float64)


def smooth(values: Array, window: int) -> Array:
    """The moving average over the first axis; the ends are repeated."""
    return np.asarray(ndimage.uniform_filter1d(values, 2 * (window // 2) + 1, axis=0, mode="nearest"))
