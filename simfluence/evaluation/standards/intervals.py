"""The mean over test examples, with an interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]


FEWEST = 5
"""Of fewer values a bootstrap interval is far too narrow, and none is given."""


class Estimate(NamedTuple):
    """A mean, the ends of its interval, and the number of values it is of."""

    mean: float
    low: float
    high: float
    n: int


def mean_with_interval(
    values: npt.ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of values [test], with a bootstrap interval over test examples (percentiles).

    NaN are left out. The ends are NaN where fewer than :data:`FEWEST` values remain, the mean too where none
    does.
    """
    known = np.asarray(values, np.float64).ravel()
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    if len(known) < FEWEST:
        return Estimate(float(known.mean()), np.nan, np.nan, len(known))
    drawn = np.random.default_rng(seed).choice(known, (resamples, len(known)))
    low, high = np.quantile(drawn.mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(known.mean()), float(low), float(high), len(known))


def agreement(losses: Array) -> Array:
    """How well one seed's losses predict another's: Spearman correlation over subsets, the mean over pairs
    of seeds, float [test].

    losses : float [subset, seed, test]. NaN where a seed's losses are all alike.

    Raises ValueError for fewer than two seeds.
    """
    seeds = losses.shape[1]
    if seeds < 2:
        raise ValueError(f"agreement is between seeds: expected two or more, got {seeds}")
    pairs = [(a, b) for a in range(seeds) for b in range(a)]
    found = [_spearman_columns(losses[:, a], losses[:, b]) for a, b in pairs]
    return np.asarray(np.mean(found, 0), np.float64)


def ceiling(between_seeds: Array, seeds: int) -> Array:
    """The correlation that perfect predictions would have with losses that are averaged over so many seeds.

    between_seeds : the correlation of one seed with another (:func:`agreement`); negative ones count as 0.

    By the Spearman-Brown formula the mean over R seeds has reliability R r / (1 + (R − 1) r), and what is
    free of noise correlates with it by the square root of that.
    """
    r = np.clip(between_seeds, 0, 1)
    return np.asarray(np.sqrt(seeds * r / (1 + (seeds - 1) * r)), np.float64)


def _spearman_columns(a: Array, b: Array) -> Array:
    """Column by column; NaN where one is constant."""
    if len(a) != len(b) or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"expected arrays of one shape, got {a.shape} and {b.shape}")
    found = np.full(a.shape[1], np.nan)
    for z, (x, y) in enumerate(zip(a.T, b.T, strict=True)):
        if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
            found[z] = stats.spearmanr(x, y).statistic
    return found
