"""Evaluations within a share of the time of training, by a clock that the tests set."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import TEST, TRAIN, new_model, per_example

from simfluence.recording import FewEvaluationsWarning, RunRecorder, budget
from simfluence.recording.budget import Budget
from simfluence.runs import RunSet


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def evaluated(share, steps, step_time, evaluation_time, start=0) -> tuple[list[int], float]:
    """The steps that are evaluated, and the time of evaluations over that of training.

    step_time, evaluation_time : seconds, of the step t and of the k-th evaluation.
    """
    clock = Clock()
    schedule = Budget(share, steps, clock)
    spent, trained, found = 0.0, 0.0, []

    def evaluator(model, processes):
        nonlocal spent
        taken = evaluation_time(len(found))
        clock.now += taken
        spent += taken
        return {}

    measured = schedule.measuring(evaluator)
    if start == 0:
        measured(None, None)
        found.append(0)
    for step in range(start + 1, steps + 1):
        clock.now += step_time(step)
        trained += step_time(step)
        if schedule(step):
            measured(None, None)
            found.append(step)
    return found, spent / trained


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("cost", [0.2, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("steps", [100, 2000])
def test_evaluations_keep_within_the_budget_and_use_it(share, cost, steps) -> None:
    found, used = evaluated(share, steps, lambda step: 1.0, lambda k: cost)
    assert found[0] == 0
    assert found[-1] == steps
    affordable = share * steps / cost
    if affordable < 3:  # the first and the last are made whatever they cost
        assert found == [0, steps]
        return
    assert used <= share + 1e-9
    if affordable >= steps + 1:
        assert found == list(range(steps + 1))
        return
    # how many steps there can be that lie geometrically from 1 to the last, and are whole numbers
    assert len(found) >= 0.8 * affordable - 2
    gaps = np.diff(found)
    assert (np.diff(gaps[:-1]) >= -1).all()  # no gap is much shorter than the one before
    assert np.median(found) <= steps / 2


@pytest.mark.parametrize(
    ("step_time", "evaluation_time"),
    [
        (lambda step: 30.0 if step == 1 else 1.0, lambda k: 2.0),  # what is compiled in the first step
        (lambda step: 1.0, lambda k: 20.0 if k == 0 else 2.0),
        (lambda step: 1.0 if step < 500 else 0.5, lambda k: 2.0),
        (lambda step: 0.5 if step < 500 else 1.0, lambda k: 2.0),
        (lambda step: 1.0, lambda k: 1.0 + k / 50),
        (lambda step: float(np.random.default_rng(step).exponential()), lambda k: 2.0),
    ],
)
def test_times_that_change(step_time, evaluation_time) -> None:
    found, used = evaluated(0.1, 1000, step_time, evaluation_time)
    assert found[-1] == 1000
    assert 0.06 < used < 0.12  # what is planned for are steps as long as those before
    assert sum(step < 100 for step in found) > sum(step >= 900 for step in found)


def test_a_resumed_run_measures_anew() -> None:
    found, used = evaluated(0.1, 1000, lambda step: 1.0, lambda k: 2.0, start=600)
    assert found[0] == 601
    assert found[-1] == 1000
    assert 0.05 < used <= 0.1
    assert max(np.diff(found)) < 100


def record_within(folder, monkeypatch, share: float) -> None:
    """A run of 300 steps of a second each, whose evaluations take three."""
    clock = Clock()
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=clock))

    def slow(model, examples):
        clock.now += 0.5 * len(examples)  # six test examples: three seconds
        return per_example(model, examples)

    recorder = RunRecorder(folder, train=TRAIN, test=TEST)
    order = itertools.cycle(TRAIN)
    with recorder.run("seed-0", model=new_model(), loss=slow, total_steps=300, evaluate_within=share) as run:
        for _ in range(300):
            clock.now += 1.0
            run.step([next(order)["id"]])


def test_a_run_is_recorded_within_a_budget(tmp_path, monkeypatch) -> None:
    record_within(tmp_path / "set", monkeypatch, 0.1)
    run = RunSet.load(tmp_path / "set")[0]
    assert run.evaluated[[0, -1]].tolist() == [0, 300]
    assert 8 <= len(run.evaluated) <= 10  # 300 s of training, a tenth of which is ten evaluations
    assert np.isfinite(run.loss).all()


def test_a_budget_of_few_evaluations_is_said(tmp_path, monkeypatch) -> None:
    with pytest.warns(FewEvaluationsWarning, match=r"evaluated [2-4] times.*evaluate_within=0\.04"):
        record_within(tmp_path / "set", monkeypatch, 0.04)
    assert RunSet.load(tmp_path / "set")[0].id == "seed-0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate_within": 0, "total_steps": 9}, "a share of the time of training above 0, got 0"),
        ({"evaluate_within": 0.1}, "needs total_steps="),
        ({"evaluate_within": 0.1, "total_steps": 9, "evaluate_every": 2}, "give one of"),
        ({"evaluate_within": 0.1, "total_steps": 9, "evaluate_at": [2]}, "give one of"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message) -> None:
    recorder = RunRecorder(tmp_path / "set", train=TRAIN, test=TEST)
    with pytest.raises(ValueError, match=message):
        recorder.run("seed-0", model=new_model(), loss=per_example, **options)
