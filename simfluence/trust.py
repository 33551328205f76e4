"""How far a predicted change is to be trusted: a band around it, and a verdict.

An edit is not a run like the recorded ones, so its change is missed by more than a new run's loss is. How
much more depends on how well the simulator explains what curricula change, its skill k on runs that it has
not seen: what is found at a signal-to-noise ratio of k / (1 − k) is off by a share √v of itself, with
v = (1 − k) / k. Effects of examples that are used more often than in any recorded run are known less well:
there v is larger by ``OVERUSE`` o², where o is the share of what the edit changes that is such use. With
w² = n² + (1 − k) (``UNLIKE`` d m)², n the half-width of the band around a new run's loss, d how far the
edit's shares of groups are from all recorded ones and m how far losses move in training, and with z, the
normal quantile of the level, the band around a predicted change Δ reaches

    towards zero and beyond    √(w² + z² v (TOWARDS² Δ² + COMMON² Δ̄²))
    away from zero             √(w² + z² v (AWAY² Δ² + COMMON² Δ̄²))

where Δ̄ is the root mean square of the changes of all test examples. It reaches further away from zero since
simulators shrink what they are not sure of. The constants were chosen on retrained edits of twelve
regimes; what the bands cover there and elsewhere is in analysis/results/answers.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri  # the normal quantile; scipy.stats takes long to import

Array = npt.NDArray[np.float64]

TOWARDS, AWAY, COMMON = 0.3, 2.0, 0.3
"""By what share of itself, times √v, a change is off towards zero and away from it, and by what share of the
usual changes besides."""
OVERUSE = 1.5
"""What v is larger by where all that an edit adds is use beyond recorded use: returns diminish or not."""
UNLIKE = 0.8
"""What share of how far losses move is not known, without skill, of an edit to groups never recorded."""
SKILLS = (0.03, 0.995)
"""A skill on few runs is itself not known better."""


@dataclass(frozen=True)
class Trust:
    """Whether the sign of the mean change over all test examples is known.

    verdict : "sure" where its band excludes zero, "leaning" where a band half as wide does, else "unknown".
    reasons : what that rests on, in words.
    """

    verdict: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verdict} ({'; '.join(self.reasons)})" if self.reasons else self.verdict


def change_band(
    change: npt.ArrayLike,
    typical: npt.ArrayLike,
    noise: npt.ArrayLike,
    skill: npt.ArrayLike,
    level: float,
    overused: npt.ArrayLike = 0.0,
    unlike: npt.ArrayLike = 0.0,
    widened: float = 1.0,
) -> tuple[Array, Array]:
    """(low, high) of predicted changes; all arguments of one shape, or that broadcast to it.

    Parameters
    ----------
    change : Δ. typical : Δ̄. noise : n. unlike : d m. All in units of the loss.
    skill : k, over the mean trajectory, on runs that were not seen. level : of the band, in 0 .. 1.
    overused : o, 0 … 1. widened : what both distances are multiplied by.
    """
    changes, usual, width = (np.asarray(values, np.float64) for values in (change, typical, noise))
    known, beyond, far = np.clip(skill, *SKILLS), np.asarray(overused), np.asarray(unlike)
    width = np.hypot(width, np.sqrt(1 - known) * UNLIKE * far)
    relative = ndtri(0.5 + level / 2) ** 2 * ((1 - known) / known + OVERUSE * beyond**2)
    towards, away = (
        widened * np.sqrt(width**2 + relative * (share**2 * changes**2 + COMMON**2 * usual**2))
        for share in (TOWARDS, AWAY)
    )
    rises = changes >= 0
    low, high = changes - np.where(rises, towards, away), changes + np.where(rises, away, towards)
    return low, high


def verdicts(change: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """ "sure", "leaning" or "unknown" of every change and its band, by whether zero is excluded."""
    changes = np.asarray(change, np.float64)
    towards = np.where(changes >= 0, changes - np.asarray(low), np.asarray(high) - changes)
    size = np.abs(changes)
    return np.where(size > towards, "sure", np.where(size > towards / 2, "leaning", "unknown"))
