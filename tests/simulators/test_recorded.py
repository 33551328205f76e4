"""What simulators say of how little they were fitted to."""

from __future__ import annotations

import numpy as np
import pytest

from simfluence.runs import RunSet
from simfluence.simulators import MeanTrajectory


@pytest.mark.parametrize(
    ("runs", "evaluated", "few"),
    [
        (1, [0, 3, 40], "losses at 3 steps in all"),
        (2, [0, 40], "losses at 4 steps in all"),
        (2, [0, 3, 40], ""),
        (1, [0, 3, 8, 17, 28, 40], ""),
    ],
)
def test_a_handful_of_evaluations_is_said(runs: int, evaluated: list[int], few: str) -> None:
    rng = np.random.default_rng(0)
    losses = np.full((runs, 41, 5), np.nan)
    losses[:, evaluated] = rng.uniform(1, 2, (len(evaluated), 5))
    batches = rng.integers(0, 12, (runs, 40, 2))
    recorded = RunSet.from_arrays([*batches], [*losses], train=12, allow_nonfinite=True)
    notes = " ".join(MeanTrajectory().fit(recorded).notes)
    assert few in notes
    assert ("predictions may be worse than none" in notes) == bool(few)


def test_a_run_of_few_steps_is_not_said_to_be_evaluated_seldom() -> None:
    losses = np.random.default_rng(0).uniform(1, 2, (1, 5, 3))
    recorded = RunSet.from_arrays([np.arange(8).reshape(4, 2)], [*losses], train=8)
    assert "in all" not in " ".join(MeanTrajectory().fit(recorded).notes)
