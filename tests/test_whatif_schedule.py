"""The learning rate in the question, and what answers say of a question beyond what was recorded.

The runs are those of a simulator whose losses fall by rate × score, averaged over the batch, so that losses
at any rates are known in closed form.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simfluence import LinearSimulator, PredictiveBands, RunSet, what_if
from simfluence import curriculum as edits
from simfluence.attribution import InfluenceScores
from simfluence.curriculum import Curriculum
from simfluence.edit import Edit
from simfluence.fitted import Fitted, fit
from simfluence.report import write_what_if
from simfluence.simulators import MeanTrajectory, ScoresSimulator, load_simulator
from simfluence.trust import change_band
from simfluence.whatif import ask

RNG = np.random.default_rng(0)
SCORES = RNG.normal(0, 0.1, (12, 4))
STEPS = 20
PEAK = 0.5


def linear(steps: int) -> np.ndarray:
    return PEAK * (1 - np.arange(steps) / steps)


def losses_of(curriculum: Curriculum, rates: np.ndarray, start: np.ndarray) -> np.ndarray:
    losses = [start]
    for batch, rate in zip(curriculum, rates, strict=True):
        losses.append(losses[-1] - rate * SCORES[batch].mean(0))
    return np.stack(losses)


def recorded(runs: int = 6, steps: int = STEPS, rate: float = 1.0) -> RunSet:
    """Runs with linear decay, each of the last example alone in its last step."""
    batches = [[*RNG.integers(0, 11, (steps - 1, 3)).tolist(), [11]] for _ in range(runs)]
    curricula = [Curriculum.from_batches(one, 12) for one in batches]
    start, rates = np.array([1.0, 2.0, 3.0, 4.0]), rate * linear(steps)
    losses = [losses_of(one, rates, start) for one in curricula]
    return RunSet.from_arrays(batches, losses, train=12, learning_rate=rates, optimizer={"class": "SGD"})


RUNS = recorded()
SIMULATOR = ScoresSimulator(
    InfluenceScores(SCORES, "exact", weighing="rate", scale=1.0), calibrated=False
).fit(RUNS[:5])
REMOVE, REPEAT = Edit("remove", ids=11), Edit("repeat", ids=[1, 2, 3], times=6)


def asked(edit, schedule: str | None = None, **options):
    return what_if(SIMULATOR, RUNS[5], edit, train=RUNS.train, test=RUNS.test, schedule=schedule, **options)


@pytest.mark.parametrize("edit", [REMOVE, REPEAT], ids=str)
@pytest.mark.parametrize("schedule", ["stretch", "keep"])
def test_the_edited_curriculum_is_simulated_at_its_own_rates(edit: Edit, schedule: str) -> None:
    run, edited = RUNS[5], edit.apply(RUNS[5], RUNS.train)
    steps = len(edited)
    assert steps != STEPS
    held = np.concatenate([linear(STEPS), np.full(steps, linear(STEPS)[-1])])[:steps]
    rates = linear(steps) if schedule == "stretch" else held
    answer = asked(edit, schedule)
    np.testing.assert_allclose(answer.changes["edited"], losses_of(edited, rates, run.loss[0])[-1])
    np.testing.assert_allclose(answer.changes["original"], run.loss[-1])
    np.testing.assert_allclose(answer.learning_rate[0], run.learning_rate)
    np.testing.assert_allclose(answer.learning_rate[1], rates, atol=1e-15)
    assert answer.schedule == schedule
    assert f"schedule={schedule}" in str(answer)
    named = replace(edit, schedule=schedule)
    pd.testing.assert_frame_equal(asked(named).changes, answer.changes)
    given = np.zeros((2, max(steps, STEPS)))
    given[0, :STEPS], given[1, :steps] = linear(STEPS), rates
    in_numbers = asked(edit, learning_rate=given)
    np.testing.assert_allclose(in_numbers.changes["change"], answer.changes["change"])
    assert "learning rate: as given" in str(in_numbers)


def test_an_edit_of_equal_length_has_the_original_rates() -> None:
    edit = Edit("shuffle")
    stretch, keep = asked(edit, "stretch"), asked(edit, "keep")
    pd.testing.assert_frame_equal(stretch.changes, keep.changes)
    assert "the original's, for as many steps" in str(stretch)


def test_an_edit_a_function_and_a_curriculum_ask_the_same() -> None:
    edited = edits.remove(RUNS[5].curriculum, [11])
    answers = [asked(one) for one in (REMOVE, lambda curriculum: edits.remove(curriculum, [11]), edited)]
    for answer in answers:
        pd.testing.assert_frame_equal(answer.changes, answers[0].changes)
    with pytest.raises(ValueError, match=r"give their table, train=runs\.train"):
        what_if(SIMULATOR, RUNS[5], REMOVE)


def test_ask_and_what_if_give_the_same_numbers() -> None:
    for schedule in ("stretch", "keep"):
        whole = ask(RUNS, LinearSimulator(1.0), REMOVE, schedule=schedule, train=5, validation=0)
        fitted = fit(RUNS, LinearSimulator(1.0), train=5, validation=0, held_out="run-005")
        parts = what_if(fitted, RUNS[5], REMOVE, train=RUNS.train, test=RUNS.test, schedule=schedule)
        pd.testing.assert_frame_equal(whole.changes, parts.changes)
        assert {"low", "high"} <= set(whole.changes)
        assert whole.notes == parts.notes
    without = what_if(fitted, RUNS[5], REMOVE, train=RUNS.train, level=None)
    assert "low" not in without.changes
    assert without.level is None


def test_retraining_is_asked_for_the_same_schedule() -> None:
    """And the answer says where it was at other rates."""
    words = []

    def retrain(run, curriculum, schedule):
        words.append(schedule)
        rates = linear(len(curriculum))
        losses = losses_of(curriculum, rates, run.loss[0])
        return replace(
            run,
            curriculum=curriculum,
            metrics={"loss": losses},
            evaluated=np.arange(len(losses)),
            learning_rate=rates,
            train_loss=np.full(len(rates), np.nan),
        )

    right, wrong = (asked(REMOVE, schedule, retrain=retrain) for schedule in ("stretch", "keep"))
    assert words == ["stretch", "keep"]
    np.testing.assert_allclose(right.changes["true_change"], right.changes["change"], atol=1e-12)
    assert right.notes == []
    assert wrong.notes == [
        "retraining was at other learning rates than simulated, by up to 5% of the highest"
    ]
    with pytest.raises(ValueError, match="learning rates by schedule="):
        asked(REMOVE, learning_rate=linear(STEPS), retrain=retrain)


def test_unknown_rates_are_said_where_lengths_differ() -> None:
    unlogged = RunSet.from_arrays(
        [list(run.curriculum) for run in RUNS], [run.loss for run in RUNS], train=RUNS.train
    )
    simulator = LinearSimulator(1.0).fit(unlogged[:5])
    for run in (unlogged[5], RUNS[5]):  # also where only the fitted runs logged none
        answer = what_if(simulator, run, REMOVE, train=RUNS.train)
        assert answer.learning_rate is None
        assert answer.notes == [
            "the learning rates are not known, so the simulation is the same for either schedule"
        ]
    assert what_if(simulator, unlogged[5], Edit("shuffle"), train=RUNS.train).notes == []


def test_answers_say_what_lies_beyond_the_recordings(tmp_path) -> None:
    long = Curriculum.from_batches([*RUNS[5].curriculum, [0], [1]], 12)
    assert asked(long).notes == ["2 steps are beyond the longest recorded run (20 steps)"]
    tripled = Curriculum.from_batches([*RUNS[5].curriculum] * 3, 12)
    assert "40 steps are beyond the longest recorded run (20 steps)" in asked(tripled).notes
    faster = asked(Edit("shuffle"), learning_rate=2 * linear(STEPS)).notes
    assert faster == [
        "the learning rate is unlike those recorded at the same step: by up to 190% of the usual rate"
    ]
    assert asked(REMOVE).notes == []
    file = tmp_path / "kept.safetensors"
    SIMULATOR.save(file)
    assert what_if(load_simulator(file), RUNS[5], long).notes == asked(long).notes


def test_examples_that_no_recorded_run_used_are_counted() -> None:
    without = RunSet.from_arrays(
        [[*one[:-1], [0]] for one in (list(run.curriculum) for run in RUNS)],
        [run.loss for run in RUNS],
        train=RUNS.train,
        learning_rate=linear(STEPS),
    )
    simulator = LinearSimulator(1.0).fit(without[:5])
    asks_about = len(RUNS[5].curriculum.used)
    expected = f"1 of the {asks_about} training examples asked about were used by no recorded run"
    assert what_if(simulator, RUNS[5], REMOVE, train=RUNS.train).notes == [expected]
    assert what_if(simulator, without[5], Edit("shuffle"), train=RUNS.train).notes == []


def test_mixed_settings_are_named() -> None:
    faster = recorded(runs=2, rate=3.0)
    other = [replace(run, id=f"other-{run.id}", optimizer={"class": "AdamW"}) for run in faster]
    mixed = RunSet([*RUNS[:4], *other], RUNS.train, RUNS.test)
    answer = what_if(LinearSimulator(1.0).fit(mixed), RUNS[5], Edit("shuffle"), train=RUNS.train)
    assert answer.notes == [
        "the recorded runs have mixed settings: class AdamW, SGD; highest learning rates from 0.5 to 1.5"
    ]


def test_the_answer_goes_into_files(tmp_path) -> None:
    answer = asked(replace(REPEAT, schedule="keep"))
    assert len(answer.notes) == 1
    write_what_if(answer, tmp_path)
    text = (tmp_path / "what_if.md").read_text()
    for note in answer.notes:
        assert f"note: {note}" in text
    found = json.loads((tmp_path / "what_if.json").read_text())
    assert found["schedule"] == "keep"
    assert found["notes"] == answer.notes
    assert found["steps"] == {"original": STEPS, "edited": len(answer.edited)}
    np.testing.assert_allclose(found["learning_rate"][1], answer.learning_rate[1])
    assert found["groups"]["all"]["change"] == pytest.approx(answer.changes["change"].mean())
    assert [row["change"] for row in found["changes"]] == pytest.approx(list(answer.changes["change"]))


@pytest.mark.parametrize(
    "simulator", [SIMULATOR, LinearSimulator(1.0).fit(RUNS)], ids=["of rates", "of none"]
)
def test_rates_and_schedules_that_cannot_be_are_refused(simulator) -> None:
    for rates, message in (
        (linear(STEPS - 3), r"\[step\] = \(20,\) or \[run, step\] = \(2, 20\), got \(17,\)"),
        (np.ones((3, STEPS)), r"got \(3, 20\)"),
        (-linear(STEPS), "finite and not negative"),
        (np.full(STEPS, np.nan), "finite and not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            what_if(simulator, RUNS[5], REMOVE, train=RUNS.train, learning_rate=rates)
    with pytest.raises(ValueError, match="must be 'stretch'"):
        what_if(simulator, RUNS[5], REMOVE, train=RUNS.train, schedule="linear")
    with pytest.raises(ValueError, match=r"must be 'stretch' .*, got 'linear'"):
        Edit("remove", ids=11, schedule="linear")
    with pytest.raises(ValueError, match=r"\(6, 20\), got \(17,\)"):
        simulator.simulate(RUNS.curricula, RUNS.initial_loss, linear(17))


def test_an_edit_says_its_schedule() -> None:
    assert str(Edit("remove", ids=3, schedule="keep")) == "remove 3 schedule keep"
    assert str(Edit("remove", ids=3, schedule="stretch")) == "remove 3"


def test_bands_are_asked_at_the_edited_rates() -> None:
    bands = PredictiveBands(ScoresSimulator(InfluenceScores(SCORES, "exact", weighing="rate"))).fit(RUNS[:5])
    for schedule in ("stretch", "keep"):
        answer = what_if(
            Fitted(bands.simulator_, bands), RUNS[5], REPEAT, train=RUNS.train, schedule=schedule
        )
        step, skill = (
            max(len(answer.original), len(answer.edited)),
            bands.skill_[min(max(len(answer.original), len(answer.edited)), len(bands.skill_) - 1)],
        )
        change = answer.changes["change"]
        overused = bands.simulator_.recorded_.overused(answer.original, answer.edited)
        typical = np.sqrt((change**2).mean())
        edges = change_band(change, typical, bands.half_width(step), skill, 0.9, overused)
        np.testing.assert_allclose(answer.changes[["low", "high"]].T, edges)
        assert bands.half_width(step).mean() > 0


def test_sparse_losses_are_said() -> None:
    assert not any("recorded once in" in note for note in MeanTrajectory().fit(RUNS).notes)
    few = []
    for run in RUNS:
        at = np.unique([*range(0, len(run), 10), len(run)])
        few.append(replace(run, metrics={"loss": run.loss[at]}, evaluated=at))
    sparse = MeanTrajectory().fit(RunSet(few, RUNS.train, RUNS.test))
    assert any("losses were recorded once in 10 steps" in note for note in sparse.notes)
