"""Are planted training examples (mislabelled ones, or ones with a trigger) told from the others?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score


def auc(suspicion: npt.ArrayLike, planted: npt.ArrayLike) -> float:
    """The area under the ROC curve: the chance that a planted example is more suspicious than another one;
    0.5 is guessing.

    suspicion : float [train], high where an example is thought to be planted. planted : bool [train].

    Raises ValueError if all or none are planted, or a suspicion is not finite.
    """
    flags = np.asarray(planted, bool)
    if flags.all() or not flags.any():
        raise ValueError(f"expected planted examples and others, got {flags.sum()} of {flags.size} planted")
    return float(roc_auc_score(flags, np.asarray(suspicion, np.float64)))
