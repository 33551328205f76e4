"""The linear datamodelling score, LDS (Park et al. 2023, TRAK, section 4.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simfluence.evaluation.metrics import across_runs_spearman
from simfluence.evaluation.standards.checks import check_scores

Array = npt.NDArray[np.float64]


def lds(scores: Array, kept: npt.NDArray[np.bool_], losses: Array) -> Array:
    """Do summed scores order the subsets as retraining does? float [test], −1 … 1.

        LDS(z) = Spearman over subsets S of  Σ_{i ∈ S} score(i, z)  and  −L_S(z)

    scores : float [train, test], positive where training on i lowers the loss of z.
    kept : bool [subset, train]. losses : float [subset, test], after retraining, averaged over seeds.

    NaN where the scores or the losses of a test example are all alike.

    Raises ValueError for shapes that do not agree.
    """
    check_scores(scores, train=kept.shape[1], test=losses.shape[1])
    if len(kept) != len(losses):
        raise ValueError(f"kept has {len(kept)} subsets, losses have {len(losses)}")
    return across_runs_spearman(-losses, kept @ scores)
