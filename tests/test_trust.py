"""Bands around changes and verdicts, against laws that they obey and changes that are known."""

from __future__ import annotations

import numpy as np
import pytest
from families import known_runs
from hypothesis import given
from hypothesis import strategies as st

from simfluence import AutoSimulator, ExampleTable, PredictiveBands, RunSet, what_if
from simfluence import curriculum as edits
from simfluence.fitted import Fitted
from simfluence.simulators import MeanTrajectory
from simfluence.trust import change_band, verdicts

changes = st.floats(-10, 10)
positive = st.floats(0.01, 10)
skills = st.floats(-1, 1)


@given(changes, positive, positive, skills)
def test_laws_of_the_band(change: float, typical: float, noise: float, skill: float) -> None:
    low, high = change_band(change, typical, noise, skill, 0.9)
    assert low < change < high
    assert min(change - low, high - change) >= noise * (1 - 1e-9)
    mirrored = change_band(-change, typical, noise, skill, 0.9)
    if change != 0:
        np.testing.assert_allclose(mirrored, (-high, -low))
        outward = high - change if change > 0 else change - low
        assert outward >= (high - low) / 2 * (1 - 1e-9)
    for wider in (
        change_band(change, typical, noise, skill, 0.99),
        change_band(change, typical, 2 * noise, skill, 0.9),
        change_band(change, 2 * typical, noise, skill, 0.9),
        change_band(change, typical, noise, skill - 0.1, 0.9),
        change_band(change, typical, noise, skill, 0.9, overused=0.5),
        change_band(change, typical, noise, skill, 0.9, unlike=0.5),
    ):
        assert wider[0] <= low
        assert wider[1] >= high
    scaled = change_band(3 * change, 3 * typical, 3 * noise, skill, 0.9)
    np.testing.assert_allclose(scaled, (3 * low, 3 * high))


def test_with_full_skill_only_noise_is_left() -> None:
    low, high = change_band([1.0, -2.0], 1.5, 0.1, 1.0, 0.9)
    np.testing.assert_allclose(low, [0.9, -2.5], atol=0.06)
    assert high == pytest.approx([1.24, -1.9], abs=0.06)


def test_verdicts_say_whether_zero_is_excluded() -> None:
    change, low, high = np.array([[1, 0.5, 2], [1, -0.5, 2], [1, -2, 2], [-1, -9, -0.1], [-1, -9, 0.9]]).T
    assert verdicts(change, low, high).tolist() == ["sure", "leaning", "unknown", "sure", "leaning"]


@pytest.fixture(scope="module")
def runs() -> RunSet:
    made, _ = known_runs(np.random.default_rng(3), runs=16, steps=40, n=24, tests=8, noise=0.01)
    return made


def test_bands_hold_changes_that_really_happened(runs: RunSet) -> None:
    """The curriculum of one held-out run as the edit of another: the true change is recorded."""
    bands = PredictiveBands(AutoSimulator()).fit(runs[:12])
    fitted, held, verdict = Fitted(bands.simulator_, bands), [], []
    for base in runs[12:]:
        for other in runs[12:]:
            if other is not base:
                answer = what_if(fitted, base, other.curriculum)
                true = other.loss[-1] - base.loss[-1]
                held += list((answer.changes["low"] <= true) & (true <= answer.changes["high"]))
                sure = answer.changes["verdict"] == "sure"
                verdict += list(np.sign(answer.changes["change"])[sure] == np.sign(true)[sure])
    assert np.mean(held) > 0.85
    assert len(verdict) > 30
    assert np.mean(verdict) > 0.95


def test_a_simulator_without_skill_is_sure_of_nothing(runs: RunSet) -> None:
    bands = PredictiveBands(MeanTrajectory()).fit(runs[:12])
    answer = what_if(Fitted(bands.simulator_, bands), runs[12], edits.remove(runs[12].curriculum, [0, 1, 2]))
    assert answer.trust.verdict == "unknown"
    assert (answer.changes["verdict"] == "unknown").all()


def test_more_use_than_was_recorded_is_said_and_widens(runs: RunSet) -> None:
    bands = PredictiveBands(AutoSimulator()).fit(runs[:12])
    fitted, base = Fitted(bands.simulator_, bands), runs[12]
    rng = np.random.default_rng(0)
    often = what_if(fitted, base, edits.repeat(base.curriculum, [3], 12, rng=rng), train=runs.train)
    recorded = bands.simulator_.recorded_
    uses = np.bincount(often.edited.examples, minlength=24)
    most = np.max([np.bincount(run.curriculum.examples, minlength=24) for run in runs[:12]], axis=0)
    expected = np.maximum(uses - most, 0).sum() / 11 / np.bincount(base.curriculum.examples)[3]
    assert recorded.overused(base.curriculum, often.edited) == pytest.approx(expected)
    assert f"{expected:.0%} of what changes is use of examples beyond" in str(often.trust)
    assert recorded.overused(base.curriculum, edits.remove(base.curriculum, [3])) == 0
    assert recorded.overused(base.curriculum, edits.shuffle(base.curriculum, rng)) == 0


def test_a_mixture_of_groups_unlike_the_recorded_ones_widens(runs: RunSet) -> None:
    labels = ["a"] * 8 + ["b"] * 16
    train = ExampleTable.of([{"id": row, "group": group} for row, group in enumerate(labels)])
    bands = PredictiveBands(MeanTrajectory()).fit(runs[:12])
    fitted, base = Fitted(bands.simulator_, bands), runs[12]
    edited = edits.remove(base.curriculum, range(8))
    plain, known = (what_if(fitted, base, edited, train=table) for table in (None, train))
    shares = np.array([np.isin(run.curriculum.examples, range(8)).mean() for run in runs[:12]])
    expected = shares.mean() - np.abs(shares - shares.mean()).mean()
    far = bands.simulator_.recorded_.distance(edited, train.groups)
    assert far == pytest.approx(expected)
    assert (
        (known.changes["high"] - known.changes["low"]) > (plain.changes["high"] - plain.changes["low"])
    ).all()
    assert bands.simulator_.recorded_.distance(base.curriculum, train.groups) < 0.1 < far
    assert "the edit uses a 0 times" in str(known.trust)


def test_means_are_known_better_than_single_changes(runs: RunSet) -> None:
    bands = PredictiveBands(AutoSimulator()).fit(runs[:12])
    single = np.sqrt(np.square(bands.half_width(40)).mean())
    assert bands.half_width_of_mean(np.arange(8), 40) < single
    np.testing.assert_allclose(bands.half_width_of_mean(np.array([2]), 40), bands.half_width(40)[2])
    assert bands.half_width_of_mean(np.arange(8), 80) > 1.5 * bands.half_width_of_mean(np.arange(8), 40)


def test_bands_of_few_runs_are_wide(runs: RunSet) -> None:
    few, many = (PredictiveBands(MeanTrajectory()).fit(runs[:count]) for count in (2, 12))
    moved = np.sqrt(np.square(runs[:2].loss[:, -1] - runs[:2].loss[:, 0]).mean())
    np.testing.assert_allclose(few.half_width(40), 1.645 * 0.3 * moved, rtol=1e-3)
    assert few.skill_[-1] == 0
    assert few.half_width_of_mean(np.arange(8), 40) <= few.half_width(40)[0]
    assert len(many.errors_) == 12


def test_a_set_without_groups_says_how_many_uses_are_left(runs: RunSet) -> None:
    bands = PredictiveBands(MeanTrajectory()).fit(runs[:12])
    edited = edits.remove(runs[12].curriculum, range(16))
    answer = what_if(Fitted(bands.simulator_, bands), runs[12], edited, train=runs.train)
    assert f"the edit uses training examples {len(edited.examples)} times" in str(answer.trust)
