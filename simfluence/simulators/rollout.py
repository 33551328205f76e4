"""From one-step models to whole trajectories."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def roll_out(alpha: Array | None, beta: Array | None, initial_loss: Array) -> Array:
    """L_t = α_t L_{t-1} + β_t from L_0, for many runs and test examples at once.

    Parameters
    ----------
    alpha, beta : [run, step, test]; None for α = 1 or β = 0.
    initial_loss : [run, test].

    Returns
    -------
    [run, step + 1, test]; a rollout that leaves the range of floats is inf, never an error here.
    """
    shape = (beta if alpha is None else alpha).shape  # type: ignore[union-attr]
    losses = np.empty((shape[0], shape[1] + 1, shape[2]))
    losses[:, 0] = initial_loss
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(shape[1]):
            losses[:, step + 1] = losses[:, step]
            if alpha is not None:
                losses[:, step + 1] *= alpha[:, step]
            if beta is not None:
                losses[:, step + 1] += beta[:, step]
    return losses
