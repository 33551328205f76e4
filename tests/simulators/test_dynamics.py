"""A dynamics against models that were really trained, and its word on runs that it has not seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from families import known_runs, skill
from log_linear import MOMENTUM, RATE, STEPS, TESTS, TRAIN, WIDTH, log_linear_runs
from safetensors.numpy import load_file

from simfluence import Curriculum, RunSet, load_simulator
from simfluence.simulators import AutoSimulator, DynamicsSimulator, EffectsSimulator
from simfluence.simulators.dynamics.cross_fit import cross_fitted
from simfluence.simulators.dynamics.fit import _Curves, fit_dynamics, misfit
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.effects.fitting import Fitting
from simfluence.simulators.effects.model import link


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def linear_dynamics(train, test, rates, **changes) -> TrainingDynamics:
    """One whose kernel does not change."""
    kept, average = np.ones(len(rates)), np.zeros((1, TESTS))
    usual = TrainingDynamics(train, test, rates, kept, MOMENTUM, False, 1.0, 0.0, 0.0, 0.0, average)
    return dataclasses.replace(usual, **changes)


def test_it_is_training_where_the_model_is_log_linear(rng):
    runs, train, test = log_linear_runs(rng, 3)
    dynamics = linear_dynamics(train, test, np.full(1, RATE / 2))
    np.testing.assert_allclose(dynamics.simulate(runs.curricula), runs.loss, atol=1e-6)


def test_what_is_known_teaches_less_and_rates_are_relative(rng):
    runs, train, test = log_linear_runs(rng, 1)
    rates = np.linspace(1, 2, STEPS)
    dynamics = linear_dynamics(train, test, rates, corrected=True, feedback=0.7, start=0.4)
    curriculum = runs[0].curriculum
    x, m = np.zeros(WIDTH), np.zeros(WIDTH)
    predicted_now = dynamics.example_residuals([curriculum])[0].reshape(STEPS, 3)
    for t, batch in enumerate(curriculum):
        left = np.array([(1 + np.exp(0.4)) / (1 + np.exp(0.4 + 0.7 * u @ x)) for u in train])
        np.testing.assert_allclose(predicted_now[t], left[batch] * rates[t] / rates.mean(), rtol=1e-10)
        m = MOMENTUM * m + (1 - MOMENTUM) * np.mean([left[i] * train[i] for i in batch], axis=0)
        x = x + rates[t] * m / (1 - MOMENTUM ** (t + 1))
    end = dynamics.simulate([curriculum])[0, -1]
    np.testing.assert_allclose(end, np.log1p(np.exp(-test @ x)), rtol=1e-10)


@pytest.mark.parametrize("corrected", [False, True])
def test_two_layers_are_trained_by_the_optimizer(rng, corrected):
    """By autograd: x = a w, both by momentum on the mean of −log σ(f) / σ(−f_0); α holds w back."""
    runs, train, test = log_linear_runs(rng, 1)
    kept, batches = np.linspace(0.9, 1.1, STEPS), list(runs[0].curriculum)
    rates = np.full(STEPS, 0.5)
    u = torch.from_numpy(train)
    w, a = torch.zeros(WIDTH, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    moments = torch.zeros_like(w), torch.zeros_like(a)
    dynamics = linear_dynamics(train, test, rates, kept=kept, growth=0.4, start=0.2, corrected=corrected)
    for t, batch in enumerate(batches):
        w.requires_grad_(), a.requires_grad_()
        f = 0.2 + a * (u[list(batch)] @ w)
        loss = -torch.nn.functional.logsigmoid(f).mean() / (1 + np.exp(0.2)) ** -1
        gradients = torch.autograd.grad(loss, [w, a])
        gradients = gradients[0] / a.detach(), gradients[1]
        moments = tuple(MOMENTUM * m - (1 - MOMENTUM) * g for m, g in zip(moments, gradients, strict=True))
        size = 1 - MOMENTUM ** (t + 1) if corrected else 1.0
        w, a = kept[t] * w + rates[t] * a * moments[0] / size, a + 0.4 * moments[1] / size
        w, a = w.detach(), a.detach()
    end = dynamics.simulate(runs.curricula)[0, -1]
    np.testing.assert_allclose(end, np.log1p(np.exp(-test @ (a * w).numpy())), rtol=1e-10)
    assert abs(float(a) - 1) > 0.1


@pytest.mark.parametrize("growth", [1e6, -1e6])
def test_two_layers_do_not_run_away(rng, growth):
    runs, train, test = log_linear_runs(rng, 1)
    dynamics = linear_dynamics(train, test, np.full(STEPS, 50.0), growth=growth)
    assert np.isfinite(dynamics.simulate(runs.curricula)).all()


def fitted_dynamics(effects, runs, changing, **options) -> TrainingDynamics:
    losses = [run.loss.astype(np.float64) for run in runs]
    known = {"momentum": MOMENTUM, "corrected": False, "rates": np.ones(1)}
    grid = np.arange(STEPS + 1)
    return fit_dynamics(effects, runs.curricula, losses, grid, changing=changing, **known | options)


def test_effects_whose_spectrum_is_another_are_put_right(rng):
    runs, train, test = log_linear_runs(rng, 16)
    left, values, right = np.linalg.svd(train @ test.T, full_matrices=False)
    flat = (left * values**0.5) @ right
    right_ones, changed, fixed = (
        fitted_dynamics(-effects, runs, changing)
        for effects, changing in ((train @ test.T, False), (flat, True), (flat, False))
    )
    errors = [
        np.square(one.simulate(runs.curricula) - runs.loss).mean() for one in (right_ones, changed, fixed)
    ]
    assert changed.power > 0.15  # (Σ^½)^{1 + 2q} is to be Σ
    assert errors[1] < 0.5 * errors[2]
    assert fixed.power == fixed.growth == 0
    assert (fixed.kept == 1).all()


def test_two_runs_do_not_say_how_a_kernel_changes():
    """Given as much weight as sixteen, these two led to a skill of −1.3."""
    folder = Path(__file__).parents[2] / "runs" / "copa-minilm-high-rate"
    runs, scores = RunSet.load(folder), load_file(folder / "scores.safetensors")["scores"]
    assert skill(DynamicsSimulator(scores).fit(runs[:2]), runs[:2], runs[2:]) > 0


@pytest.mark.parametrize("runs_used", [1, 2])
def test_scores_and_whole_curves_of_few_runs_are_enough(rng, runs_used):
    """What the curves of one run are predicted_now by says how others go; against the mean of all eight."""
    runs, train, test = log_linear_runs(rng, 8)
    dynamics = fitted_dynamics(-7.0 * train @ test.T, runs[:runs_used], True)
    predicted_now, mean = dynamics.simulate(runs[2:].curricula), runs.loss.mean(0)
    wrong, base = (np.square(guess - runs[2:].loss).mean() for guess in (predicted_now, mean))
    assert 1 - wrong / base > 0.9
    own = dynamics.simulate(runs[:runs_used].curricula)
    np.testing.assert_allclose(own.mean(0), runs[:runs_used].loss.mean(0), atol=0.02)  # the level is theirs


def test_misfit_is_none_of_the_truth_and_all_of_nothing(rng):
    runs, train, test = log_linear_runs(rng, 3)
    truth = linear_dynamics(train, test, np.full(1, RATE / 2))
    nothing = linear_dynamics(0 * train, test, np.full(1, RATE / 2))
    for few in (runs[:1], runs[:2], runs):
        recorded = few.curricula, [run.loss.astype(np.float64) for run in few], np.arange(STEPS + 1)
        assert misfit(truth, *recorded) < 0.005  # log-odds of losses near 0 are cut off
        assert misfit(nothing, *recorded) == pytest.approx(1)


@pytest.mark.parametrize(("runs_used", "counts"), [(1, 1), (2, 1 / 2), (3, 1 / 3), (4, 0)])
def test_whole_curves_count_as_one_run_of_few(rng, runs_used, counts):
    """A change that all runs share is none of deviations, and all of whole curves."""
    runs, _, _ = log_linear_runs(rng, runs_used)
    losses = [np.maximum(run.loss.astype(np.float64), 0.1) for run in runs]
    true = np.stack(losses)
    shared = link(true, "log_odds") - link(true[:, :1], "log_odds") + 0.5
    wrong = _Curves(losses, STEPS + 1, whole=True).wrong(shared)
    off = np.log1p(np.exp(link(true, "log_odds") + 0.5)) - true
    share = np.square(off[:, 1:]).sum() / np.square(true - true[:, :1])[:, 1:].sum()
    assert np.square(wrong).sum() == pytest.approx(counts * share, abs=1e-12)


@pytest.mark.parametrize("name", ["rte-minilm", "copa-minilm"])
def test_one_run_and_scores_answer_what_ifs(name, tmp_path):
    """Against the mean of twenty runs; that one run's own course is at -.5 to -.7."""
    folder = Path(__file__).parents[2] / "runs" / name
    runs, scores = RunSet.load(folder), load_file(folder / "scores_adam.safetensors")["scores"]
    held_out = runs[22:]
    fit = AutoSimulator(scores=scores).fit(runs[:1])
    predicted_now = fit.simulate(held_out.curricula, held_out.initial_loss)
    errors = [np.square(guess - held_out.loss).mean() for guess in (predicted_now, runs[:20].loss.mean(0))]
    assert 1 - errors[0] / errors[1] > 0.8
    own = fit.simulate(runs[:1].curricula, runs[:1].initial_loss)
    np.testing.assert_allclose(own, runs[:1].loss, atol=1e-6)
    fit.save(tmp_path / "auto")
    again = load_simulator(tmp_path / "auto").simulate(held_out.curricula, held_out.initial_loss)
    np.testing.assert_array_equal(again, predicted_now)


def test_scores_that_know_nothing_are_left_alone_by_one_run(rng):
    runs, _, _ = log_linear_runs(rng, 2)
    useless = np.random.default_rng(7).normal(size=(TRAIN, TESTS))
    predicted_now = (
        AutoSimulator(scores=useless).fit(runs[:1]).simulate(runs[1:].curricula, runs[1:].initial_loss)
    )
    np.testing.assert_allclose(predicted_now[0], runs[0].loss, atol=1e-6)  # as that one went


def test_inner_products_and_a_few_runs_are_enough(rng):
    runs, train, test = log_linear_runs(rng, 8)
    fitted = runs[:4]
    dynamics = fitted_dynamics(-7.0 * train @ test.T, fitted, False, momentum=0.9)
    predicted_now, mean = dynamics.simulate(runs[4:].curricula), fitted.loss.mean(0)
    wrong, base = (np.square(guess - runs[4:].loss).mean() for guess in (predicted_now, mean))
    assert 1 - wrong / base > 0.97  # not 1: how singular values are shared between u and v is a guess
    assert dynamics.momentum == pytest.approx(MOMENTUM, abs=0.08)


def test_from_runs_alone_it_beats_effects_that_add_up():
    runs = RunSet.load(Path(__file__).parents[2] / "runs" / "rte-minilm")[:16]
    plain, dynamics = (
        EffectsSimulator(penalty=0.01, link="log_odds", decay=0.1, dynamics=own) for own in (False, True)
    )
    without, with_it = (skill(one.fit(runs[:8]), runs[:8], runs[8:]) for one in (plain, dynamics))
    assert 1 - with_it < 0.5 * (1 - without)


@pytest.mark.parametrize("penalties", [[0.1, 0.1], []], ids=["effects", "scores"])
def test_runs_are_told_without_having_been_seen(rng, penalties):
    runs, train, test = log_linear_runs(rng, 6)
    scores = (train @ test.T)[None] if not penalties else np.empty((0, TRAIN, TESTS))
    losses = runs.loss.astype(np.float64)
    losses[2, 1:] *= 1.5
    other = RunSet.from_arrays(
        [list(c) for c in runs.curricula], losses, train=TRAIN, optimizer=dict(runs[0].optimizer)
    )
    words = []
    for one in (runs, other):
        fitting = Fitting(one, None, scores, np.empty((0, 0)), 4000)
        words.append(cross_fitted(fitting, (MOMENTUM, False), penalties).predicted_before)
    deviations = [  # from the mean, which is that of all runs
        np.log(np.expm1(word.losses[2])) - link(one.loss, "log_odds").mean(0)
        for word, one in zip(words, (runs, other), strict=True)
    ]
    np.testing.assert_allclose(deviations[0], deviations[1], atol=1e-6)
    np.testing.assert_array_equal(words[0].weights[2], words[1].weights[2])
    assert not np.allclose(words[0].losses[3], words[1].losses[3], rtol=1e-6)


def test_saved_refitted_and_asked_beyond_the_recorded_steps(rng, tmp_path):
    runs, _, _ = log_linear_runs(rng, 8)
    fit = EffectsSimulator(dynamics=True).fit(runs[:6])
    assert fit.settings_["prior"] == "dynamics"
    fit.save(tmp_path / "fit")
    loaded = load_simulator(tmp_path / "fit")
    long = Curriculum.from_batches([*runs[0].curriculum, *runs[1].curriculum], TRAIN)
    losses = fit.simulate([long, *runs[6:].curricula], runs.initial_loss[0])
    np.testing.assert_array_equal(losses, loaded.simulate([long, *runs[6:].curricula], runs.initial_loss[0]))
    assert np.isfinite(losses[0]).all()
    np.testing.assert_allclose(losses[1:, : STEPS + 1], runs[6:].loss, atol=0.4)
    again = loaded.refit(runs[:6]).simulate([long], runs.initial_loss[0])
    np.testing.assert_allclose(again, losses[:1], rtol=1e-9)


@pytest.mark.parametrize("reason", ["few runs", "losses without log-odds", "runs that tell nothing"])
def test_where_there_is_none(rng, reason):
    runs, _ = known_runs(rng, effects=np.zeros((16, 5)) if reason == "runs that tell nothing" else None)
    if reason == "losses without log-odds":
        shifted = [dataclasses.replace(run, metrics={"loss": run.loss - 5}) for run in runs]
        runs = RunSet(shifted, runs.train, runs.test)
    train = runs[:3] if reason == "few runs" else runs[:6]
    fit = EffectsSimulator(dynamics=True).fit(train)
    assert fit.settings_["prior"] == ""
    assert np.isfinite(fit.simulate(runs.curricula, runs.initial_loss)).all()


@pytest.mark.parametrize("schedule", ["warm-up from nothing", "decay to nothing", "every other step"])
def test_rates_may_be_nothing(rng, schedule):
    runs, _, _ = log_linear_runs(rng, 6)
    way = np.linspace(0, 1e-3, STEPS)
    rates = {"warm-up from nothing": way, "decay to nothing": way[::-1]}.get(
        schedule, way * (np.arange(STEPS) % 2)
    )
    scheduled = [dataclasses.replace(run, learning_rate=rates) for run in runs]
    fit = AutoSimulator().fit(RunSet(scheduled, runs.train, runs.test))
    assert np.isfinite(fit.simulate(runs.curricula, runs.initial_loss)).all()
    dynamics = EffectsSimulator(dynamics=True).fit(RunSet(scheduled, runs.train, runs.test))
    assert dynamics.settings_["prior"] == "dynamics"


def test_a_run_that_diverged_is_no_overflow(rng):
    runs, _, _ = log_linear_runs(rng, 6)
    losses = runs.loss.astype(np.float64)
    losses[3, 20:, 1] = 800.0
    diverged = RunSet.from_arrays([list(c) for c in runs.curricula], losses, train=TRAIN)
    fit = EffectsSimulator(dynamics=True, link="log_odds").fit(diverged)
    assert np.isfinite(fit.simulate(runs.curricula, runs.initial_loss)).all()


def test_a_second_fit_forgets_the_dynamics_of_the_first(rng):
    runs, _, _ = log_linear_runs(rng, 6)
    fit = EffectsSimulator(dynamics=True).fit(runs)
    assert fit.predictor_train_.shape[0] == TRAIN
    fit.fit(runs[:3])  # too few for one
    assert [name for name in vars(fit) if name.startswith("predictor_")] == ["predictor_"]
