"""Prior prediction: what is predicted of deviations from the mean before effects are fitted.

Training dynamics (dynamics/) predict losses G_r(t, z) of every training run r. With bars for means over the
runs and g the link,

    g(L_r(t, z)) = c(t) (g(G_r(t, z)) − ḡ(t, z)) + …,      c(t) = Σ_{r,z} D_r d_r / Σ_{r,z} D_r²

D = g(G) − ḡ, d = g(L) − mean. The sums are smoothed over t, and c is drawn to 1 by the weight of one run. The
effects regression (regression.py) is fitted to what is left. A run that is left out is given the c of the
other runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.simulators.effects.grid import mean_over_runs, smooth

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PriorPrediction:
    """On the scale of the link.

    average : ḡ [step, test]. slope : c [point of the grid].
    runs, out_of_fold : c · D of each training run, [point, test], with the c of all runs and of the other
        runs.
    """

    average: Array
    slope: Array
    runs: list[Array]
    out_of_fold: list[Array]


def prior_prediction(
    predicted: Sequence[Array], levels: Sequence[Array], grid: npt.NDArray[np.int64]
) -> PriorPrediction:
    """From g(G), one [step + 1, test] a run, and g(L), one [point, test] a run."""
    average, mean = mean_over_runs(predicted), mean_over_runs(levels)
    deviations = []
    for own, level in zip(predicted, levels, strict=True):
        at = np.minimum(grid[: len(level)], len(own) - 1)
        deviations.append(own[at] - average[at])
    product, square = np.zeros((2, len(levels), len(grid)))
    for number, (deviation, level) in enumerate(zip(deviations, levels, strict=True)):
        product[number, : len(level)] = (deviation * (level - mean[: len(level)])).sum(1)
        square[number, : len(level)] = np.square(deviation).sum(1)
    slope = _slope(product, square)
    out_of_fold = []
    for number, deviation in enumerate(deviations):
        others = np.arange(len(levels)) != number
        without = _slope(product[others], square[others]) if others.any() else slope
        out_of_fold.append(without[: len(deviation), None] * deviation)
    runs = [slope[: len(deviation), None] * deviation for deviation in deviations]
    return PriorPrediction(average, slope, runs, out_of_fold)


def _slope(product: Array, square: Array) -> Array:
    """c [point] of sums [run, point]."""
    window = max(square.shape[1] // 6, 1)
    product, extra = smooth(product.sum(0), window), smooth(square.mean(0), window)
    square = smooth(square.sum(0), window)
    tiny = 1e-12 * max(float(square.max()), 1e-300)
    return np.clip((product + extra + tiny) / (square + extra + tiny), 0.0, 2.0)
