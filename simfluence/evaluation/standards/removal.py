"""What happens to a test example when the training examples with its highest scores are removed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def top_examples(scores: npt.ArrayLike, share: float) -> npt.NDArray[np.intp]:
    """The rows of the ``share`` of the training examples with the highest scores, the highest first.

    scores : float [train], for one test example. At least one row is given; of equal scores the first.

    Raises ValueError for a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share is a part of the training examples in (0, 1), got {share}")
    values = np.asarray(scores)
    return np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))]


def removal_curve(removed: Array, random: Array) -> Array:
    """By how much more the loss is after removing the top than after removing as many at random,
    float [share, test].

    removed : float [share, test], the loss of each test example after retraining without the examples that
        score highest for it. random : float [share, draw, test], after random removals of the same size.

    Positive: the removed examples did help the test example.
    """
    if random.ndim != 3 or removed.shape != (random.shape[0], random.shape[2]):
        raise ValueError(
            f"expected removed [share, test] and random [share, draw, test], got {removed.shape} and"
            f" {random.shape}"
        )
    return np.asarray(removed - random.mean(1), np.float64)


def brittleness(right_before: npt.NDArray[np.bool_], right_after: npt.NDArray[np.bool_]) -> Array:
    """Did the right answer turn wrong? float [test], 1 or 0, whose mean is the share of answers that flip.

    right_before : bool [test], after training on everything. right_after : bool [test], after the removal.

    NaN where the answer was wrong before.
    """
    return np.where(right_before, ~right_after, np.nan).astype(np.float64)
