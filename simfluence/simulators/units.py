"""Losses of any scale and sign, in units in which the link of cross-entropies fits them.

Simulators work on log(eᴸ − 1), which suits a loss L = −log p of about 1. Sums over many tokens, tiny losses,
margins and log-ratios are brought there first:

    L′ = (L − offset) / scale

A loss of the usual size is left as it is. Other losses above zero get the median 1. Where some lie below
zero, or many are zero, the smallest becomes 1 and the standard deviation 1: there log(eᴸ − 1) is close to L.
analysis/results/losses.md has what this gains.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.links import has_log_odds
from simfluence.runs import RunSet
from simfluence.simulators.state import saved

Array = npt.NDArray[np.float64]

USUAL = (0.05, 20.0)
"""Losses whose median lies in between are left as they are."""


@saved
@dataclass(frozen=True)
class Units:
    """L′ = (L − offset) / scale."""

    offset: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, runs: RunSet) -> Units:
        """Those that suit the losses of these runs."""
        losses = np.concatenate([run.loss.ravel() for run in runs]).astype(np.float64)
        losses = losses[np.isfinite(losses)]
        if not len(losses):
            return cls()
        if not has_log_odds(losses):
            scale = float(losses.std()) or 1.0
            return cls(float(losses.min()) - scale, scale)
        median = float(np.median(losses))
        return cls() if USUAL[0] <= median <= USUAL[1] or median == 0 else cls(0.0, median)

    def into(self, losses: npt.ArrayLike) -> Array:
        """L′ of L, of any shape."""
        return (np.asarray(losses, np.float64) - self.offset) / self.scale

    def out_of(self, losses: Array) -> Array:
        """L of L′, of any shape."""
        return self.offset + self.scale * losses

    def runs_into(self, runs: RunSet) -> RunSet:
        """The same runs with L′ for their losses."""
        if self == Units():
            return runs
        changed = [
            dataclasses.replace(run, metrics={**run.metrics, "loss": self.into(run.loss)}) for run in runs
        ]
        return RunSet(changed, runs.train, runs.test)
