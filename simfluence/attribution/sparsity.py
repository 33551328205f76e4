"""How concentrated influence is: the share of the strongest proponents, and the tail of the distribution.

Grosse et al. (2023) found 12 to 52% of the total positive influence in the top 1% of sequences, and tails
close to a power law, P(S > s) ∝ s^(1−α). The fit here is that of Clauset et al. (2009): for a lower end
s_min,

    α = 1 + m / Σ_{s ≥ s_min} ln(s / s_min)             m values at or above s_min

and of all s_min the one whose fit lies nearest to the values (Kolmogorov-Smirnov distance). The p-value says
how often values that do follow this law lie farther from their own fit: a small one rules the law out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.scores import InfluenceScores

Array = npt.NDArray[np.float64]

_FEWEST = 10  # values that a tail must hold
_MOST_STARTS = 200  # lower ends that are tried


@dataclass(frozen=True)
class Tail:
    """A power law fitted to the largest values.

    alpha : the exponent of the density, > 1; standard_error : (α − 1)/√m.
    start : s_min. size : m. distance : Kolmogorov-Smirnov, 0 .. 1.
    p_value : of the law being right, given s_min; NaN unless asked for.
    """

    alpha: float
    standard_error: float
    start: float
    size: int
    distance: float
    p_value: float


def share_of_top(values: npt.ArrayLike, fraction: float = 0.01) -> float:
    """The share of the total positive value that the largest ``fraction`` of all values hold, 0 .. 1.

    At least one value is counted; NaN if nothing is positive.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in 0 < fraction ≤ 1, got {fraction}")
    positive = np.sort(np.maximum(np.asarray(values, np.float64).ravel(), 0.0))[::-1]
    if positive.size == 0 or positive[0] <= 0:
        return float("nan")
    return float(positive[: max(1, round(fraction * positive.size))].sum() / positive.sum())


def power_law_tail(values: npt.ArrayLike, *, samples: int = 0, seed: int = 0) -> Tail | None:
    """The best-fitting tail of the positive values; None if fewer than ten differ.

    samples : simulated sets of values for the p-value (200 suffice to tell .05 from .01); 0: no p-value.
    """
    positive = np.sort(np.asarray(values, np.float64).ravel())
    positive = positive[positive > 0]
    starts = np.unique(positive[: max(0, len(positive) - _FEWEST + 1)])
    if len(np.unique(positive)) < _FEWEST:
        return None
    if len(starts) > _MOST_STARTS:
        starts = starts[np.linspace(0, len(starts) - 1, _MOST_STARTS).astype(np.int64)]
    fits = [_fit(positive[np.searchsorted(positive, start) :]) for start in starts]
    alpha, distance, tail = min(fits, key=lambda fit: fit[1])
    p_value = float("nan")
    if samples:
        rng = np.random.default_rng(seed)
        made = tail[0] * rng.random((samples, len(tail))) ** (-1 / (alpha - 1))
        farther = [_distance(np.sort(row), _alpha(row, tail[0]), tail[0]) >= distance for row in made]
        p_value = float((1 + np.sum(farther)) / (1 + samples))
    error = (alpha - 1) / np.sqrt(len(tail))
    return Tail(alpha, float(error), float(tail[0]), len(tail), distance, p_value)


def sparsity(scores: InfluenceScores, *, fraction: float = 0.01, samples: int = 0) -> pd.DataFrame:
    """A frame with one row for each test example: test_example, proponents (how many are positive), share,
    alpha, tail_size, distance, p_value. NaN where there is no tail to fit.
    """
    rows = []
    for z, column in enumerate(scores.scores.T):
        tail = power_law_tail(column, samples=samples, seed=z)
        fitted = (tail.alpha, tail.size, tail.distance, tail.p_value) if tail else (np.nan, 0, np.nan, np.nan)
        rows.append((z, int((column > 0).sum()), share_of_top(column, fraction), *fitted))
    names = ["test_example", "proponents", "share", "alpha", "tail_size", "distance", "p_value"]
    return pd.DataFrame(rows, columns=names)


def _fit(tail: Array) -> tuple[float, float, Array]:
    """(α, distance, tail) of ascending values, the first of which is s_min."""
    alpha = _alpha(tail, tail[0])
    return alpha, _distance(tail, alpha, tail[0]), tail


def _alpha(tail: Array, start: float) -> float:
    total = float(np.log(tail / start).sum())
    return 1 + len(tail) / total if total > 0 else np.inf


def _distance(tail: Array, alpha: float, start: float) -> float:
    """Between the distribution function of ascending values and 1 − (s/s_min)^(1−α): scipy's kstest, written
    out, since fits take thousands of them."""
    if not np.isfinite(alpha):
        return 1.0
    expected = 1 - (tail / start) ** (1 - alpha)
    reached = np.arange(1, len(tail) + 1) / len(tail)
    return float(max((reached - expected).max(), (expected - reached).max() + 1 / len(tail)))
