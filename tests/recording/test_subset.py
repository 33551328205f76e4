"""Test examples that are evaluated in turn: which, what is recorded, and what simulators make of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import TEST, TRAIN, Training, per_example

from simfluence.recording import NonFiniteLossWarning, RunRecorder
from simfluence.recording.budget import Budget
from simfluence.recording.subset import Rotation
from simfluence.runs import RunSet, example
from simfluence.runs.transitions import transitions
from simfluence.scores import INITIAL_SCORES, InfluenceScores
from simfluence.simulators import SIMULATORS, AutoSimulator, EffectsSimulator, MeanTrajectory
from simfluence.simulators.effects.grid import losses_on_grid

STEPS = 11


@pytest.mark.parametrize(
    ("size", "n", "sizes"),
    [
        (0.25, 40, [10] * 4),
        (0.3, 10, [3, 3, 2, 2]),
        (4, 6, [3, 3]),
        (1, 3, [1, 1, 1]),
        (7, 5, [5]),
        (0.01, 5, [1] * 5),
    ],
)
def test_every_test_example_has_its_turn(size, n, sizes):
    rotation = Rotation(size, n, 100)
    assert sorted(map(len, rotation.groups)) == sorted(sizes)
    assert sorted(np.concatenate(rotation.groups).tolist()) == list(range(n))
    assert rotation.rows(0, 0) is None
    assert rotation.rows(100, 9) is None
    if len(sizes) > 1:
        turns = [rotation.rows(3 * k, k).tolist() for k in range(1, 2 * len(sizes) + 1)]
        assert turns == 2 * [group.tolist() for group in rotation.groups]


@pytest.mark.parametrize("size", [0, -1, 1.5, True, float("nan")])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match=r"a share of the test examples below 1, or a number"):
        Rotation(size, 10, 5)


def test_the_number_of_steps_must_be_known(tmp_path):
    recorder, training = RunRecorder(tmp_path, TRAIN, TEST), Training()
    with pytest.raises(ValueError, match="evaluate_subset needs total_steps="):
        recorder.run("a", model=training.model, loss=per_example, evaluate_subset=2)


def record(folder, run_id="a", steps=STEPS, loss=per_example, **options):
    training, asked = Training(steps=STEPS), []

    def noting(model, examples):
        asked.append([example["id"] for example in examples])
        return loss(model, examples)

    recorder = RunRecorder(folder, TRAIN, TEST)
    options = {"total_steps": STEPS, "state": training.state, "resume_every": 4} | options
    with recorder.run(
        run_id, model=training.model, loss=noting, optimizer=training.optimizer, **options
    ) as run:
        for _ in range(run.start, steps):
            ids, value = training.step()
            run.step(ids, train_loss=value)
    return asked


def test_only_those_are_evaluated_and_their_losses_are_right(tmp_path):
    record(tmp_path / "whole")
    asked = record(tmp_path / "part", evaluate_subset=1 / 3)
    whole, part = RunSet.load(tmp_path / "whole")[0], RunSet.load(tmp_path / "part")[0]
    known = np.isfinite(part.loss)
    assert known.sum(1).tolist() == [6, *[2] * (STEPS - 1), 6]
    np.testing.assert_allclose(part.loss[known], whole.loss[known], rtol=1e-5)  # in other batches
    assert [sorted(ids) for ids in asked[1:-1]] == [
        sorted(np.array([e["id"] for e in TEST])[row].tolist()) for row in known[1:-1]
    ]
    rotation = Rotation(1 / 3, 6, STEPS)
    for number in range(1, STEPS):
        assert np.flatnonzero(known[number]).tolist() == rotation.rows(number, number).tolist()


def test_a_resumed_run_goes_on_with_the_turns(tmp_path):
    record(tmp_path / "whole", evaluate_subset=2)
    with pytest.warns(UserWarning, match="after 6 of 11 steps"):
        record(tmp_path / "part", steps=6, evaluate_subset=2)
    record(tmp_path / "part", evaluate_subset=2, resume=True)
    whole, part = (RunSet.load(tmp_path / name)[0] for name in ("whole", "part"))
    assert np.array_equal(whole.loss, part.loss, equal_nan=True)


def test_those_left_out_are_not_taken_for_losses_that_are_not_finite(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record(tmp_path / "sound", evaluate_subset=2)

    def broken(model, examples):
        losses = per_example(model, examples)
        return torch.where(torch.tensor([e["id"] == TEST[4]["id"] for e in examples]), torch.nan, losses)

    with pytest.warns(NonFiniteLossWarning, match=rf"test example {TEST[4]['id']!r} is nan after step 0"):
        record(tmp_path / "broken", loss=broken, evaluate_subset=2)


def test_a_budget_keeps_enough_for_the_last_evaluation():
    """Of evaluations in between, which take a second, the last takes four; a step takes one."""
    now, taken = 0.0, []

    def evaluator(model, processes=None, rows=None):
        nonlocal now
        seconds = 1.0 if rows is not None else 4.0
        taken.append(seconds)
        now += seconds
        return {}

    budget = Budget(0.2, 100, lambda: now, whole=4)
    evaluate = budget.measuring(evaluator)
    evaluate(None)
    for step in range(1, 101):
        now += 1.0
        if budget(step):
            evaluate(None, None, None if step == 100 else np.arange(1))
    assert 18 <= sum(taken) <= 20
    assert len(taken) >= 12


# ------------------------------------------------------------------------------- what simulators make of it


def linear_runs(n_runs=12, steps=24, n_train=6, n_test=4, seed=0) -> tuple[RunSet, np.ndarray]:
    """Runs whose losses follow L_t = L_{t-1} + Σ B exactly, and B [train, test]."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(n_train, n_test)) * 0.02
    batches = rng.integers(0, n_train, (n_runs, steps, 2))
    moves = effects[batches].sum(2)
    losses = 5.0 + np.concatenate([np.zeros((n_runs, 1, n_test)), np.cumsum(moves, 1)], axis=1)
    return RunSet.from_arrays(batches, losses, train=n_train), effects


def in_turn(runs: RunSet, size: float) -> RunSet:
    """The runs as recorded with ``evaluate_subset=size``."""

    def masked(run):
        rotation, values = Rotation(size, run.loss.shape[1], len(run)), run.loss.copy()
        for number, step in enumerate(run.evaluated):
            if (rows := rotation.rows(int(step), number)) is not None:
                values[number, np.setdiff1d(np.arange(values.shape[1]), rows)] = np.nan
        return replace(run, metrics={"loss": values})

    return RunSet([masked(run) for run in runs], runs.train, runs.test)


def test_transitions_between_the_turns_of_a_test_example():
    """Against a plain loop over test examples and their known losses."""
    runs, _ = linear_runs(n_runs=2, steps=7)
    masked = in_turn(runs, 2)
    found = transitions(masked.runs)
    seen = set()
    for number, run in enumerate(masked):
        for z in range(run.loss.shape[1]):
            known = np.flatnonzero(np.isfinite(run.loss[:, z]))
            for begin, end in pairwise(known):
                counts = np.zeros(6)
                for step in range(run.evaluated[begin], run.evaluated[end]):
                    np.add.at(counts, run.curriculum[step], 1)
                alike = (found.run == number) & found.observed[:, z]
                alike &= (found.counts.toarray() == counts).all(1)
                alike &= found.previous[:, z] == run.loss[begin, z]
                alike &= found.current[:, z] == run.loss[end, z]
                assert alike.any()
                seen.update((int(row), z) for row in np.flatnonzero(alike))
    assert len(seen) == found.observed.sum()
    assert (found.previous[~found.observed] == 0).all()


def test_the_published_simulator_finds_the_effects_from_turns():
    runs, effects = linear_runs()
    simulator = SIMULATORS["additive"](penalty=1e-8).fit(in_turn(runs, 1))
    np.testing.assert_allclose(simulator.B_, effects, atol=1e-5)


def test_simulators_lose_no_more_than_by_evaluating_all_of_them_seldom():
    """A quarter of the test examples every time, against all of them every fourth time: as much is known."""
    runs, _ = linear_runs(n_runs=16)
    train, test = runs[:12], runs[12:]

    def seldom(run):
        steps = [*range(0, len(run), 4), len(run)]
        return replace(run, evaluated=np.array(steps), metrics={"loss": run.loss[steps]})

    def error(known: RunSet) -> float:
        fitted = EffectsSimulator(penalty=1.0).fit(known)
        return np.square(fitted.simulate(test.curricula, test.initial_loss) - test.loss).mean()

    assert error(in_turn(train, 0.25)) < 1.2 * error(RunSet([*map(seldom, train)], runs.train, runs.test))
    usual = MeanTrajectory().fit(train).simulate(test.curricula, test.initial_loss)
    assert error(in_turn(train, 0.25)) < 0.6 * np.square(usual - test.loss).mean()


def test_predictions_are_taken_where_losses_are_known():
    """Against numpy's interpolation, a test example at a time; complete runs are left as they are."""
    runs, _ = linear_runs(n_runs=2, steps=9)
    complete, part = losses_on_grid(runs, 100), losses_on_grid(in_turn(runs, 2), 100)
    values = np.random.default_rng(0).normal(size=(10, 4))
    assert complete.as_known(0, values) is values
    assert complete.between == 1.0
    masked = in_turn(runs, 2)[1].loss
    for z in range(4):
        at = np.flatnonzero(np.isfinite(masked[:, z]))
        expected = np.interp(np.arange(10), at, values[at, z])
        np.testing.assert_allclose(part.as_known(1, values)[:, z], expected)
    assert part.between == pytest.approx(9 * 4 / np.isfinite(masked[1:]).sum())


def test_one_run_explains_as_much_from_turns():
    """Of the real example set: the share of what is peculiar to one run that scores explain."""
    runs, scores = RunSet.example(), InfluenceScores.load(example.folder() / INITIAL_SCORES)
    whole, part = (AutoSimulator(scores).fit(known) for known in (runs[:1], in_turn(runs[:1], 0.25)))
    assert part.explained_ == pytest.approx(whole.explained_, abs=0.05)
