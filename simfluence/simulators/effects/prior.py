"""Deviations from the mean trajectory that are known before any effect is fitted.

With G_r(t, z) = g(losses) of run r as predicted_before (by training a linearised or a dynamics,
see linearised.py and dynamics.py) and bars for means over the
training runs,

    g(L_r(t, z)) = c(t) (G_r(t, z) − Ḡ(t, z)) + …,      c(t) = Σ_r,z D_r d_r / Σ_r,z D_r²

D = G − Ḡ, d = g(L) − mean, sums smoothed over t and drawn to c = 1 by the weight of one run. The rest is
the regression's (regression.py). A run that is left out is prior by the c of the other runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.simulators.effects.grid import smooth

Array = npt.NDArray[np.float64]


class Predictor(Protocol):
    """What can say beforehand how curricula differ."""

    def simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        """Losses [run, step + 1, test]."""

    def example_residuals(self, curricula: Sequence[Curriculum]) -> list[Array] | None:
        """How much each use teaches, one [use] a curriculum; None where that is not known."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """With ``plain``: all that ``restored`` takes, as files have it."""

    def plain(self) -> dict[str, Any]:
        """JSON."""

    @classmethod
    def restored(cls, arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> Self:
        """From what ``arrays`` and ``plain`` gave."""


@dataclass(frozen=True)
class Predicted:
    """What a predictor says of the training runs, each of them predicted_now without having seen it.

    losses : one [step + 1, test] a run. weights : its ``example_residuals``, one [use] a run, or None.
    again : what ``alternation.cross_fitted`` takes to make it of other runs; JSON.
    """

    by: Predictor
    losses: list[Array]
    weights: list[Array] | None = None
    again: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PriorPrediction:
    """Link space throughout.

    average : Ḡ [step, test]. slope : c [point of the grid].
    runs, out_of_fold : c · D of each training run, [point, test], by the c of all runs and of the others.
    """

    average: Array
    slope: Array
    runs: list[Array]
    out_of_fold: list[Array]


def prior_prediction(
    predicted_before: list[Array], losses: list[Array], grid: npt.NDArray[np.int64]
) -> PriorPrediction:
    """From G, one [step + 1, test] a run, and g(L), one [point, test] a run."""
    average = _mean(predicted_before)
    deviations = []
    for own, loss in zip(predicted_before, losses, strict=True):
        at = np.minimum(grid[: len(loss)], len(own) - 1)
        deviations.append(own[at] - average[at])
    mean = _mean(losses)
    product, square = np.zeros((2, len(losses), len(grid)))
    for number, (deviation, loss) in enumerate(zip(deviations, losses, strict=True)):
        product[number, : len(loss)] = (deviation * (loss - mean[: len(loss)])).sum(1)
        square[number, : len(loss)] = np.square(deviation).sum(1)
    slope = _slope(product, square)
    out_of_fold = []
    for number, deviation in enumerate(deviations):
        others = np.arange(len(losses)) != number
        without = _slope(product[others], square[others]) if others.any() else slope
        out_of_fold.append(without[: len(deviation), None] * deviation)
    runs = [slope[: len(deviation), None] * deviation for deviation in deviations]
    return PriorPrediction(average, slope, runs, out_of_fold)


def _mean(values: list[Array]) -> Array:
    """Over the runs that reached a point."""
    total = np.zeros((max(len(value) for value in values), values[0].shape[1]))
    count = np.zeros((len(total), 1))
    for value in values:
        total[: len(value)] += value
        count[: len(value)] += 1
    return np.asarray(total / count, np.float64)


def _slope(product: Array, square: Array) -> Array:
    """c [point] of [run, point] sums."""
    window = max(square.shape[1] // 6, 1)
    product, extra = smooth(product.sum(0), window), smooth(square.mean(0), window)
    square = smooth(square.sum(0), window)
    tiny = 1e-12 * max(float(square.max()), 1e-300)
    return np.clip((product + extra + tiny) / (square + extra + tiny), 0.0, 2.0)
