"""What recording more runs would bring."""

from __future__ import annotations

import numpy as np
import pytest
from families import known_runs

from simfluence import AutoSimulator, PredictiveBands
from simfluence.evaluation.more_runs import MoreRuns, more_runs
from simfluence.simulators import MeanTrajectory


def test_a_power_law_goes_on() -> None:
    """1 − k = 4 R^(−1.5)."""
    known = MoreRuns(16, 1 - 4 * 8**-1.5, 1 - 4 * 16**-1.5)
    for runs in (16, 17, 32, 100):
        assert known.skill(runs) == pytest.approx(1 - 4 * runs**-1.5)
    assert f"{1 - 4 * 17**-1.5:.2f} from 17" in str(known)


def test_skill_does_not_fall_with_more_runs() -> None:
    assert MoreRuns(16, 0.6, 0.5).skill(32) == pytest.approx(0.5)
    assert MoreRuns(16, 0.1, -0.1).skill(32) == -0.1
    assert "not explained yet" in str(MoreRuns(16, 0.1, -0.1))


def test_skills_are_those_of_the_bands() -> None:
    runs, _ = known_runs(np.random.default_rng(0), runs=12, noise=0.01)
    found = more_runs(runs, AutoSimulator())
    first, second, whole = (PredictiveBands(AutoSimulator()).fit(part) for part in (runs[:6], runs[6:], runs))
    assert found.whole == whole.skill_[-1]
    assert found.half == pytest.approx((first.skill_[-1] + second.skill_[-1]) / 2)
    assert found.half < found.whole <= found.skill(13) <= found.skill(24) < 1


def test_without_a_curriculum_more_runs_bring_nothing() -> None:
    runs, _ = known_runs(np.random.default_rng(0), runs=8)
    assert more_runs(runs, MeanTrajectory()).skill(100) == 0
    with pytest.raises(ValueError, match="6 recorded runs at least; here are 5"):
        more_runs(runs[:5], MeanTrajectory())
