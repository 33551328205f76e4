"""Training dynamics against models that were really trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from families import cut, replaced, skill, with_losses
from log_linear import MOMENTUM, RATE, STEPS, TESTS, TRAIN, WIDTH, log_linear_runs, trained
from safetensors.numpy import load_file

from simfluence import Curriculum, RunSet
from simfluence.attribution import InfluenceScores
from simfluence.errors import RunDataError
from simfluence.links import link, unlink
from simfluence.simulators import DynamicsSimulator, ScoresSimulator
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.effects.momentum import Momentum

RUNS = Path(__file__).parents[2] / "runs"
ONES = np.ones((1, STEPS))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def dynamics_of(train, test, **changes) -> TrainingDynamics:
    """Those of the log-linear model, whose kernel does not change."""
    usual = TrainingDynamics(
        train=train,
        test=test,
        metric=np.ones(train.shape[1]),
        profile=np.full(1, RATE / 2),  # f is twice what ⟨u, w⟩ adds to −log σ(f) at f = 0
        kept=np.ones(1),
        momentum=Momentum(MOMENTUM, False),
        feedback=1.0,
        growth=0.0,
        start=0.0,
        average=np.zeros((1, TESTS)),
        usual=1.0,
    )
    return dataclasses.replace(usual, **changes)


# -------------------------------------------------------------------------------------- the model


def test_it_is_training_where_the_model_is_log_linear(rng):
    runs, train, test = log_linear_runs(rng, 3)
    losses = dynamics_of(train, test).simulate(runs.curricula, np.ones((3, STEPS)))
    np.testing.assert_allclose(losses, runs.loss, atol=1e-6)


def test_runs_of_different_lengths_are_independent(rng):
    runs, train, test = log_linear_runs(rng, 3)
    ragged = [runs[0], cut(runs[1], 7), cut(runs[2], 23)]
    curricula = [run.curriculum for run in ragged]
    dynamics, rates = dynamics_of(train, test), np.ones((3, STEPS))
    losses, weights = dynamics.simulate(curricula, rates), dynamics.use_weights(curricula, rates)
    for number, run in enumerate(ragged):
        np.testing.assert_allclose(losses[number, : len(run) + 1], run.loss, atol=1e-6)
        assert len(weights[number]) == len(run.curriculum.examples)
        alone = dynamics.use_weights([run.curriculum], ONES)[0]
        np.testing.assert_allclose(weights[number], alone, rtol=1e-12)


def test_what_is_learnt_teaches_less_and_rates_are_relative(rng):
    """The residual ρ of every use, times γ over its usual size, written out for a single run."""
    runs, train, test = log_linear_runs(rng, 1)
    given, profile = rng.uniform(0.5, 2, STEPS), np.linspace(1, 2, STEPS)
    changes = {"profile": profile, "momentum": Momentum(MOMENTUM, True), "feedback": 0.7, "start": 0.4}
    dynamics = dynamics_of(train, test, usual=1.7, **changes)
    curriculum, rates = runs[0].curriculum, given * profile
    x, m = np.zeros(WIDTH), np.zeros(WIDTH)
    weights = dynamics.use_weights([curriculum], given[None])[0].reshape(STEPS, 3)
    for t, batch in enumerate(curriculum):
        left = np.array([(1 + np.exp(0.4)) / (1 + np.exp(0.4 + 0.7 * u @ x)) for u in train])
        np.testing.assert_allclose(weights[t], left[batch] * rates[t] / 1.7, rtol=1e-10)
        m = MOMENTUM * m + (1 - MOMENTUM) * np.mean([left[i] * train[i] for i in batch], axis=0)
        x = x + rates[t] * m / (1 - MOMENTUM ** (t + 1))
    end = dynamics.simulate([curriculum], given[None])[0, -1]
    np.testing.assert_allclose(end, np.log1p(np.exp(-test @ x)), rtol=1e-10)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_two_layers_are_trained_by_the_optimizer(rng, bias_correction):
    """By autograd: x = a w, both by momentum on the mean of −log σ(f) / σ(−f_0); α holds w back."""
    runs, train, test = log_linear_runs(rng, 1)
    kept, batches = np.linspace(0.9, 1.1, STEPS), list(runs[0].curriculum)
    rates = np.full(STEPS, 0.5)
    u = torch.from_numpy(train)
    w, a = torch.zeros(WIDTH, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    moments = torch.zeros_like(w), torch.zeros_like(a)
    momentum = Momentum(MOMENTUM, bias_correction)
    dynamics = dynamics_of(train, test, profile=rates, kept=kept, growth=0.4, start=0.2, momentum=momentum)
    for t, batch in enumerate(batches):
        w.requires_grad_(), a.requires_grad_()
        f = 0.2 + a * (u[list(batch)] @ w)
        loss = -torch.nn.functional.logsigmoid(f).mean() / (1 + np.exp(0.2)) ** -1
        gradients = torch.autograd.grad(loss, [w, a])
        gradients = gradients[0] / a.detach(), gradients[1]
        moments = tuple(MOMENTUM * m - (1 - MOMENTUM) * g for m, g in zip(moments, gradients, strict=True))
        size = 1 - MOMENTUM ** (t + 1) if bias_correction else 1.0
        w, a = kept[t] * w + rates[t] * a * moments[0] / size, a + 0.4 * moments[1] / size
        w, a = w.detach(), a.detach()
    end = dynamics.simulate(runs.curricula, ONES)[0, -1]
    np.testing.assert_allclose(end, np.log1p(np.exp(-test @ (a * w).numpy())), rtol=1e-10)
    assert abs(float(a) - 1) > 0.1


def test_a_metric_is_other_features(rng):
    """Σ^{2q} between u and v: the dynamics of features that are multiplied by Σ^q."""
    runs, train, test = log_linear_runs(rng, 1)
    sizes = rng.uniform(0.5, 2, WIDTH)
    metric = dynamics_of(train, test, metric=sizes**2, growth=0.2).simulate(runs.curricula, ONES)
    scaled = dynamics_of(train * sizes, test * sizes, growth=0.2).simulate(runs.curricula, ONES)
    np.testing.assert_allclose(metric, scaled, rtol=1e-10)


@pytest.mark.parametrize("growth", [1e6, -1e6])
def test_two_layers_do_not_run_away(rng, growth):
    runs, train, test = log_linear_runs(rng, 1)
    dynamics = dynamics_of(train, test, profile=np.full(1, 50.0), growth=growth)
    assert np.isfinite(dynamics.simulate(runs.curricula, ONES)).all()


def test_a_shift_moves_the_log_odds(rng):
    runs, train, test = log_linear_runs(rng, 2)
    dynamics, shift = dynamics_of(train, test), rng.normal(size=(2, TESTS))
    plain = dynamics.simulate(runs.curricula, np.ones((2, STEPS)))
    moved = dynamics.simulate(runs.curricula, np.ones((2, STEPS)), shift)
    np.testing.assert_allclose(np.log(np.expm1(moved)), np.log(np.expm1(plain)) + shift[:, None], atol=1e-9)


# ---------------------------------------------------------------------------------- the simulator


def test_dynamics_of_scores_are_training_and_adding_up_is_not(rng):
    runs, train, test = log_linear_runs(rng, 8)
    scores = InfluenceScores(train @ test.T, "made up")
    dynamics, added = (make(scores).fit(runs[:4]) for make in (DynamicsSimulator, ScoresSimulator))
    assert skill(dynamics, runs[:4], runs[4:]) > 0.97
    assert skill(added, runs[:4], runs[4:]) < 0.8


def test_units_of_scores_do_not_matter(rng):
    runs, train, test = log_linear_runs(rng, 3)
    asked = runs.curricula, runs.initial_loss
    one, other = (DynamicsSimulator(k * train @ test.T).fit(runs).simulate(*asked) for k in (1.0, 1e-3))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_without_scores_it_is_the_mean_trajectory_of_log_odds(rng):
    runs, _, _ = log_linear_runs(rng, 8)
    nothing = DynamicsSimulator().fit(runs[:4])
    mean = unlink(link(runs[:4].loss, "log_odds").mean(0), "log_odds")
    np.testing.assert_allclose(
        nothing.simulate(runs.curricula, runs.initial_loss)[:, 1:],
        np.broadcast_to(mean, runs.loss.shape)[:, 1:],
        rtol=1e-6,
    )


def test_initial_losses_that_differ_shift_the_predictions(rng):
    """By what log(eᴸ − 1) differs by from the training runs' mean, at every step."""
    runs, train, test = log_linear_runs(rng, 4)
    fit = DynamicsSimulator(train @ test.T).fit(runs)
    plain = fit.simulate(runs.curricula, runs.initial_loss)
    shift = rng.normal(0, 0.5, (4, TESTS))
    moved = fit.simulate(runs.curricula, unlink(link(runs.initial_loss, "log_odds") + shift, "log_odds"))
    np.testing.assert_allclose(np.log(np.expm1(moved)), np.log(np.expm1(plain)) + shift[:, None], atol=1e-9)


def test_predicted_at_another_learning_rate(rng):
    """The runs were trained at .2; what is predicted at half of it is what training at half of it gives."""
    runs, train, test = log_linear_runs(rng, 8)
    logged = replaced(runs, learning_rate=np.full(STEPS, RATE))
    fit = DynamicsSimulator(train @ test.T).fit(logged[:4])
    slower = np.stack([trained(run.curriculum, train, test, RATE / 2) for run in runs[4:]])
    at = np.arange(STEPS + 30)  # rates beyond the curriculum do not matter
    predicted = fit.simulate(runs[4:].curricula, runs[4:].initial_loss, np.full(len(at), RATE / 2))
    usual = fit.simulate(runs[4:].curricula, runs[4:].initial_loss)
    change = slower - slower[:, :1]
    moved = (predicted - predicted[:, :1]) - (usual - usual[:, :1])
    true = change - (runs[4:].loss - runs[4:].loss[:, :1])
    assert np.corrcoef(moved[:, 1:].ravel(), true[:, 1:].ravel())[0, 1] > 0.9
    relative = np.full((4, STEPS), 0.5)
    shift = link(runs[4:].initial_loss, "log_odds") - fit.initial_
    exactly = fit.dynamics_.simulate(runs[4:].curricula, relative, shift)
    np.testing.assert_allclose(predicted[:, 1:], exactly[:, 1:], rtol=1e-12)
    unlogged = DynamicsSimulator(train @ test.T).fit(runs[:3])
    with pytest.raises(RunDataError, match="did not log their learning rates"):
        unlogged.simulate(runs.curricula, runs.initial_loss, [RATE] * STEPS)


def test_asked_beyond_the_recorded_steps(rng):
    runs, train, test = log_linear_runs(rng, 4)
    fit = DynamicsSimulator(train @ test.T).fit(runs)
    long = Curriculum.from_batches([*runs[0].curriculum, *runs[1].curriculum], TRAIN)
    losses = fit.simulate([long], runs.initial_loss[:1])
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(
        losses[0, : STEPS + 1], fit.simulate(runs.curricula[:1], runs.initial_loss[:1])[0], rtol=1e-12
    )


def test_two_runs_do_not_tell_how_a_kernel_changes():
    """Given as much weight as sixteen, these two led to a skill of −1.3."""
    folder = RUNS / "copa-minilm-high-rate"
    runs, scores = RunSet.load(folder), load_file(folder / "scores.safetensors")["scores"]
    assert skill(DynamicsSimulator(scores).fit(runs[:2]), runs[:2], runs[2:]) > 0


def test_what_has_no_dynamics_is_named(rng):
    runs, train, test = log_linear_runs(rng, 2)
    with pytest.raises(ValueError, match="losses above 0, but one of -"):
        DynamicsSimulator(train @ test.T).fit(with_losses(runs, runs.loss - 5))
    with pytest.raises(ValueError, match=r"\[train, test\] = \(24, 6\), got \(6, 24\)"):
        DynamicsSimulator(test @ train.T).fit(runs)
    with pytest.raises(ValueError, match="finite"):
        DynamicsSimulator(np.nan * train @ test.T).fit(runs)
