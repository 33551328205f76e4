"""Leave-one-out: the example's score against what retraining without it does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simfluence.evaluation.metrics import across_runs_spearman
from simfluence.evaluation.standards.checks import check_scores

Array = npt.NDArray[np.float64]


def leave_one_out_correlation(
    scores: Array, left_out: npt.NDArray[np.integer], losses: Array, whole: Array
) -> Array:
    """Spearman correlation over left-out examples of the score and the rise of the loss, float [test].

    scores : float [train, test], positive where training on i lowers the loss of z.
    left_out : int [m], which example each retraining lacked. losses : float [m, test], after these.
    whole : float [test], after training on everything.

    NaN where the scores or the losses of a test example are all alike.
    """
    check_scores(scores, train=len(scores), test=losses.shape[1])
    if len(left_out) != len(losses):
        raise ValueError(f"{len(left_out)} examples are left out, losses have {len(losses)} rows")
    return across_runs_spearman(losses - whole, scores[left_out])
