"""Which test examples each evaluation is of, where evaluating all of them every time would cost too much.

The test examples are dealt into groups at random, the same way in every run. Evaluations take the groups in
turn; those before the first step and after the last are of all test examples. What was not evaluated is
recorded as NaN, which simulators treat as missing.
"""

from __future__ import annotations

import math

import numpy as np

from simfluence.curriculum import IntArray


class Rotation:
    """The test examples of each evaluation.

    Parameters
    ----------
    size : how many test examples to evaluate at a time: a share below 1, or a number.
    n_test : how many there are.
    total_steps : how many steps the run will have.

    Raises ValueError for a size that is neither, or without a number of steps.
    """

    def __init__(self, size: float, n_test: int, total_steps: int | None) -> None:
        if isinstance(size, bool) or not (0 < size < 1 or (size >= 1 and size == int(size))):
            raise ValueError(
                f"evaluate_subset is a share of the test examples below 1, or a number of them; got {size}"
            )
        if total_steps is None:
            raise ValueError(
                "evaluate_subset needs total_steps=, the run's number of steps: all test examples are"
                " evaluated after the last"
            )
        self._total = total_steps
        wanted = size * n_test if size < 1 else min(int(size), n_test)
        count = math.ceil(n_test / max(wanted, 1) - 1e-9)
        dealt = np.random.default_rng(0).permutation(n_test)
        self.groups: list[IntArray] = [np.sort(dealt[first::count]) for first in range(count)]
        """The rows of the test table in each group; their sizes differ by one at most."""

    def rows(self, step: int, number: int) -> IntArray | None:
        """The rows of the test table to evaluate after a step; None for all.

        number : of evaluations before this one.
        """
        if number == 0 or step >= self._total or len(self.groups) == 1:
            return None
        return self.groups[(number - 1) % len(self.groups)]


def without_missing(losses: np.ndarray, rows: IntArray | None) -> np.ndarray:
    """The losses [test], 0 where they were not evaluated (``rows``, as of :meth:`Rotation.rows`)."""
    if rows is None:
        return losses
    found = np.zeros_like(losses)
    found[rows] = losses[rows]
    return found
