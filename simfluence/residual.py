"""What a recorded run says of its own edits.

Of a recorded run the losses are known, and so is what a simulation of it misses, its residual. Part of that
would be missed under an edited curriculum too: the part that is due to what both have in common. Inferring
what is particular to a run from what happened to it, and keeping it for what did not happen, is the step of
abduction in a counterfactual (Pearl, Causality, 2nd ed. 2009, section 7.1).

How much two curricula have in common after t steps is said by their exposures: what every example has given
to a run so far, each step weighing by its learning rate,

    e_t[i] = Σ_{s ≤ t} exp(−(t − s) / memory) · rate_s · (uses of i in step s / size of step s).

The share of the residual that stays is how much of the original's exposure o the edited one's e repeats,

    share_t = ⟨e_t − ō_t, o_t − ō_t⟩ / ⟨o_t − ō_t, o_t − ō_t⟩    between 0 and 1,    ō_t = the mean over i,

halfway between that over the whole training and that over its last steps (``RECENT``), since both which
examples were used and which came last are particular to a run. Before the first step in which the curricula
differ, all of it stays; afterwards at most ``KEPT``. How that does on retrained edits:
analysis/results/bank.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, IntArray, count_matrix
from simfluence.runs import Run

Array = npt.NDArray[np.float64]

RECENT = 0.03
"""The memory of the exposure to the last steps, as a share of the original's steps."""
KEPT = 0.9
"""The share of a residual that stays under the smallest edit: training amplifies small differences, and so
loses some of it. Chosen with ``RECENT`` on retrained edits of twelve regimes (analysis/results/bank.md).
"""
_POINTS = 64
"""At so many steps shares are computed; between them they are interpolated."""


@dataclass(frozen=True)
class Carried:
    """What the simulation of a recorded run misses, and what of it an edit keeps.

    residual : float [step + 1, test] of the original: recorded − simulated loss, interpolated between
        evaluations; 0 where no loss of a test example is known.
    carried : float [step + 1, test] of the edited curriculum: to be added to its simulation.
    kept : the share of the residual that is kept after the last step.
    """

    residual: Array
    carried: Array
    kept: float


def carried(
    original: Run, edited: Curriculum, simulated: Array, rates: tuple[Array, Array] | None = None
) -> Carried:
    """The residual of a recorded run, and what of it is carried over to an edited curriculum.

    Parameters
    ----------
    simulated : float [step + 1, test], the simulation of the original run; further rows are not read.
    rates : the learning rates [step] of the original and of the edited curriculum; None: all the same.
    """
    curriculum = original.curriculum
    residual = _residual(original, simulated[: len(curriculum) + 1])
    counterpart, share = kept_share(curriculum, edited, rates)
    before = np.floor(counterpart).astype(np.int64)
    after = np.minimum(before + 1, len(curriculum))
    part = (counterpart - before)[:, None]
    moved = (1 - part) * residual[before] + part * residual[after]
    return Carried(residual, share[:, None] * moved, float(share[-1]))


def kept_share(
    original: Curriculum, edited: Curriculum, rates: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Of each step of the edited curriculum the step of the original that it corresponds to (a fraction lies
    between two), and the share of the residual there that stays; both float [step + 1].

    Steps correspond to themselves up to the first that differs, and the rest of one to the rest of the other.
    """
    own = rates or (np.ones(len(original)), np.ones(len(edited)))
    same = _first_difference(original, edited, own)
    steps = np.arange(len(edited) + 1, dtype=np.float64)
    stretch = (len(original) - same) / max(len(edited) - same, 1)
    counterpart = np.where(steps <= same, steps, np.minimum(same + (steps - same) * stretch, len(original)))
    points = np.unique(np.linspace(same, len(edited), _POINTS).round().astype(np.int64))
    of_original = counterpart[points].round().astype(np.int64)
    found = np.zeros(len(points))
    for memory in (np.inf, max(RECENT * len(original), 1.0)):
        before = _exposure(original, own[0], of_original, memory)
        center = before.mean(1, keepdims=True)
        before = before - center
        after = _exposure(edited, own[1], points, memory) - center
        size = np.square(before).sum(1)
        common = np.divide((after * before).sum(1), size, out=np.ones(len(points)), where=size > 0)
        found += np.clip(common, 0, 1) / 2
    share = np.interp(steps, points, KEPT * found)
    return counterpart, np.where(steps <= same, 1.0, share)


def _residual(run: Run, simulated: Array) -> Array:
    steps, residual = np.arange(len(run) + 1), np.zeros(simulated.shape)
    for column, losses in enumerate(run.loss.T.astype(np.float64)):
        known = np.isfinite(losses)
        if known.any():
            at = run.evaluated[known]
            residual[:, column] = np.interp(steps, at, losses[known] - simulated[at, column])
    return residual


def _first_difference(original: Curriculum, edited: Curriculum, rates: tuple[Array, Array]) -> int:
    """The number of steps that both begin with."""
    both = min(len(original), len(edited))
    one, other = (count_matrix([curriculum], 1.0)[:both] for curriculum in (original, edited))
    differ = abs(one - other).sum(1) > 1e-9
    differ |= ~np.isclose(rates[0][:both], rates[1][:both], rtol=1e-6)
    return int(np.argmax(differ)) if differ.any() else both


def _exposure(curriculum: Curriculum, rates: Array, points: IntArray, memory: float) -> Array:
    """e_t after so many steps, float [point, train]."""
    ago = points[:, None] - 1 - np.arange(len(curriculum))
    weights = np.where(ago >= 0, np.exp(-np.maximum(ago, 0) / memory), 0.0) * rates[: len(curriculum)]
    return np.asarray(weights @ count_matrix([curriculum], 1.0), np.float64)
