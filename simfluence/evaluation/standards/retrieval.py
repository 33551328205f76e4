"""Are the training examples that are known to state a fact found? Equal scores count against the method."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simfluence.evaluation.standards.checks import check_scores

Array = npt.NDArray[np.float64]


def recall_at_k(scores: Array, relevant: npt.NDArray[np.bool_], k: int) -> Array:
    """The share of the relevant training examples that are among the k with the highest scores, float [test].

    scores : float [train, test]. relevant : bool [train, test].

    NaN where no example is relevant.

    Raises ValueError for k below 1, or shapes that do not agree.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    ranked = _relevant_by_rank(scores, relevant)
    count = relevant.sum(0)
    return np.where(count > 0, ranked[:k].sum(0) / np.maximum(count, 1), np.nan)


def reciprocal_rank(scores: Array, relevant: npt.NDArray[np.bool_]) -> Array:
    """1 / rank of the first relevant training example, float [test], whose mean is the mean reciprocal rank.

    scores : float [train, test]. relevant : bool [train, test].

    NaN where no example is relevant.
    """
    ranked = _relevant_by_rank(scores, relevant)
    return np.where(relevant.any(0), 1 / (ranked.argmax(0) + 1), np.nan)


def _relevant_by_rank(scores: Array, relevant: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """bool [rank, test]: whether the example of a rank is relevant; among equal scores these come last."""
    check_scores(scores, train=relevant.shape[0], test=relevant.shape[1])
    order = np.lexsort((relevant, -scores), axis=0)
    return np.take_along_axis(relevant, order, axis=0)
