"""Whether runs start alike: from the same weights, as far as that is known.

Simulators predict what another curriculum would have done from the same start. Where every run has initial
weights of its own, these move losses too, and what they do cannot be separated from what examples do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

NOTICEABLE = 0.02
"""Of the differences between runs at their ends: initial losses that differ less are taken to be the same."""
ROUNDING = 1e-4
"""Of the initial losses themselves: smaller differences are rounding."""

UNLIKE = (
    "the runs do not start alike: part of what sets them apart is their initial weights, which no simulator"
    " knows; seed before the model is made, or load the same weights in every run"
)


def start_alike(
    weights: Sequence[str | None], first: Sequence[Array | None], last: Sequence[Array]
) -> bool | None:
    """Whether runs start alike; None where that is not known.

    Where the fingerprints of initial weights are known of all runs, they are compared; else the initial
    losses, whose differences must be noticeable beside those at the end.

    Parameters
    ----------
    weights : of each run, the fingerprint of its initial weights. first : its losses [test] before the first
        step. last : those at its end.
    """
    if len(weights) < 2:
        return True
    if None not in weights:
        return len(set(weights)) == 1
    if any(losses is None for losses in first):
        return None
    start = np.stack([losses for losses in first if losses is not None]).astype(np.float64)
    differences = _spread(start)
    size = float(np.sqrt(np.square(start[np.isfinite(start)]).mean())) if np.isfinite(start).any() else np.nan
    if np.isnan(differences) or np.isnan(size):
        return None
    end = np.nan_to_num(_spread(np.stack(last).astype(np.float64)))
    return bool(differences <= max(NOTICEABLE * end, ROUNDING * size))


def _spread(losses: Array) -> float:
    """Root mean square of deviations from the mean over runs, of test examples finite in all; NaN if none is.

    losses : float [run, test].
    """
    finite = losses[:, np.isfinite(losses).all(0)]
    return float(np.sqrt(np.square(finite - finite.mean(0)).mean())) if finite.size else float("nan")


def in_words(alike: bool | None) -> str:
    """One line for a list of runs."""
    if alike is None:
        return "whether these runs start alike is not known: they have no losses before the first step"
    return "these runs start alike" if alike else UNLIKE
