"""What every standard checks of its arguments."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def check_scores(scores: npt.NDArray[np.floating], *, train: int, test: int) -> None:
    """Raises ValueError unless scores are finite and [train, test]."""
    if scores.shape != (train, test):
        raise ValueError(f"scores must be [train, test] = [{train}, {test}], got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
