"""What recording more runs would bring: skill from half of the runs, from all, and, extrapolated, from more.

What is left unexplained, 1 − k with k the skill on runs that were left out of the fit, falls with the number
of runs R about as a power of it (analysis/results/more_runs.md):

    1 − k(R′) = (1 − k(R)) (R′/R)^(−a),      a from k(R/2) and k(R), not below 0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simfluence.runs import RunSet
from simfluence.simulators import PredictiveBands, Simulator

FEWEST_RUNS = 6


@dataclass(frozen=True)
class MoreRuns:
    """runs : how many were recorded. half, whole : skill after the last step, over the mean trajectory, by
    fits to half of the runs (the mean over both halves) and to all of them.
    """

    runs: int
    half: float
    whole: float

    def skill(self, runs: int) -> float:
        """The expected skill from that many runs; of a simulator without skill, what it is now."""
        if self.whole <= 0:
            return self.whole
        left = np.clip([1 - self.half, 1 - self.whole], 1e-6, 1)
        power = max(float(np.log2(left[0] / left[1])), 0.0)
        return float(1 - left[1] * (runs / self.runs) ** -power)

    def __str__(self) -> str:
        words = f"skill on runs left out: {self.half:.2f} from half of the runs, {self.whole:.2f} from all"
        if self.whole <= 0:
            return f"{words}; what the curricula change is not explained yet"
        more = [f"{self.skill(count):.2f} from {count}" for count in (self.runs + 1, 2 * self.runs)]
        return f"{words}; expected: {', '.join(more)}"


def more_runs(runs: RunSet, simulator: Simulator) -> MoreRuns:
    """Fit a simulator to both halves of recorded runs and to all of them; it is copied, not changed.

    Raises ValueError for fewer than six runs.
    """
    if len(runs) < FEWEST_RUNS:
        raise ValueError(
            f"what more runs bring is seen from {FEWEST_RUNS} recorded runs at least; here are {len(runs)}"
        )
    half = len(runs) // 2
    parts = [runs[:half], runs[half : 2 * half], runs]
    first, second, whole = (float(PredictiveBands(simulator).fit(part).skill_[-1]) for part in parts)
    return MoreRuns(len(runs), (first + second) / 2, whole)
