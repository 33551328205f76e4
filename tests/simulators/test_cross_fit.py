"""Cross-fitting: each run is predicted by training dynamics, and effects in them, that have not seen it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import known_runs, replaced, skill, with_losses
from log_linear import STEPS, TESTS, TRAIN, log_linear_runs

from simfluence import Curriculum, RunSet, load_simulator
from simfluence.links import link
from simfluence.simulators import AutoSimulator, EffectsSimulator
from simfluence.simulators.dynamics import cross_fit
from simfluence.simulators.dynamics.cross_fit import ROUNDS
from simfluence.simulators.effects.data import TrainingData


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def cross_fitted(runs: RunSet, scores: np.ndarray | None) -> cross_fit.CrossFitted:
    """By scores, or by effects with given penalties."""
    data = TrainingData(runs, np.empty((0, TRAIN, TESTS)), 4000)
    if scores is None:
        found = cross_fit.effects_dynamics(data, lambda: None, [0.1, 0.1, 0.1])
    else:
        found = cross_fit.scores_dynamics(data, scores[None], lambda: None)
    assert found is not None
    return found


@pytest.mark.parametrize("kernel", ["scores", "effects"])
@pytest.mark.parametrize(("evaluations", "tolerance"), [(4, 0.1), (40, 5e-3)])
def test_a_run_is_predicted_without_having_been_seen(rng, monkeypatch, kernel, evaluations, tolerance):
    """With other losses its predicted deviation from the mean over all runs, and ρ γ of its uses, stay.

    Up to how far the least squares of its fold is from its end: it begins at the numbers found on all runs.
    """
    monkeypatch.setattr(cross_fit, "_FOLD_EVALUATIONS", evaluations)
    runs, train, test = log_linear_runs(rng, 6)
    losses = runs.loss
    losses[2, 1:] *= 1.5
    other = with_losses(runs, losses)
    scores = train @ test.T if kernel == "scores" else None
    found = [cross_fitted(one, scores) for one in (runs, other)]
    deviations = [
        [np.log(np.expm1(own)) - link(one.loss, "log_odds").mean(0) for own in fit.predicted]
        for fit, one in zip(found, (runs, other), strict=True)
    ]
    moved = [np.abs(a - b).max() for a, b in zip(*deviations, strict=True)]
    weights = [np.abs(a - b).max() for a, b in zip(*(fit.use_weights for fit in found), strict=True)]
    others = [0, 1, 3, 4, 5]
    assert moved[2] < tolerance * np.min([moved[run] for run in others])
    assert weights[2] < tolerance * max(weights[run] for run in others)


@pytest.mark.parametrize("kernel", ["scores", "effects"])
def test_out_of_fold_predictions_are_as_good_as_those_of_new_runs(rng, kernel):
    """Within what twelve runs tell: neither much better (a run was seen) nor much worse."""
    runs, train, test = log_linear_runs(rng, 12)
    scores = train @ test.T + 0.5 * rng.normal(size=(TRAIN, TESTS))
    fit = EffectsSimulator(scores, kernel).fit(runs[:8])
    base = np.square(runs[:8].loss - runs[:8].loss.mean(0)).mean() * (8 / 7) ** 2
    own = 1 - np.square(fit.out_of_fold(runs[:8]) - runs[:8].loss).mean() / base
    assert fit.dynamics_ is not None
    assert own == pytest.approx(skill(fit, runs[:8], runs[8:]), abs=0.1)


def test_effects_found_in_runs_are_a_kernel_that_beats_adding_them_up():
    runs = RunSet.load(Path(__file__).parents[2] / "runs" / "rte-minilm")[:16]
    without, with_dynamics = (
        skill(EffectsSimulator(kernel=kernel).fit(runs[:8]), runs[:8], runs[8:])
        for kernel in (None, "effects")
    )
    assert 1 - with_dynamics < 0.5 * (1 - without)


@pytest.mark.parametrize("kernel", ["scores", "effects"])
def test_a_run_is_predicted_the_same_whatever_else_is_simulated(rng, kernel):
    """Runs of different lengths, at learning rates of their own."""
    runs, train, test = log_linear_runs(rng, 6)
    logged = replaced(runs, learning_rate=np.linspace(2, 1, STEPS))
    fit = EffectsSimulator(train @ test.T, kernel).fit(logged)
    short = Curriculum.from_batches(list(runs[0].curriculum)[:9], TRAIN)
    curricula, rates = [short, runs[1].curriculum], rng.uniform(1, 3, (2, STEPS))
    together = fit.simulate(curricula, runs.initial_loss[:2], rates)
    for number, curriculum in enumerate(curricula):
        alone = fit.simulate([curriculum], runs.initial_loss[number], rates[number])[0]
        np.testing.assert_allclose(together[number, : len(alone)], alone, rtol=1e-10)


@pytest.mark.parametrize("kernel", ["scores", "effects"])
def test_nothing_deviates_where_nothing_is_trained(rng, kernel):
    """At a rate of 0 all curricula are predicted alike, and near the recorded rate it matters smoothly."""
    runs, train, test = log_linear_runs(rng, 8)
    rates = np.linspace(2e-3, 1e-3, STEPS)
    fit = EffectsSimulator(train @ test.T, kernel).fit(replaced(runs, learning_rate=rates)[:6])
    asked = runs[6:].curricula, runs[6:].initial_loss
    still = fit.simulate(*asked, learning_rate=0 * rates)
    np.testing.assert_allclose(still[0], still[1], atol=1e-9)
    usual, more, less = (fit.simulate(*asked, learning_rate=k * rates) for k in (1.0, 1.5, 0.5))
    assert np.abs(usual[0] - usual[1])[-1].max() > 0.1
    faster, slower = (np.square(some[0] - some[1])[5].mean() for some in (more, less))
    assert faster > slower


def test_saved_refitted_and_asked_beyond_the_recorded_steps(rng, tmp_path):
    runs, _, _ = log_linear_runs(rng, 8)
    fit = EffectsSimulator(kernel="effects").fit(runs[:6])
    assert fit.dynamics_ is not None
    assert 1 <= len(fit.kernel_penalties_) <= ROUNDS
    fit.save(tmp_path / "fit")
    loaded = load_simulator(tmp_path / "fit")
    long = Curriculum.from_batches([*runs[0].curriculum, *runs[1].curriculum], TRAIN)
    losses = fit.simulate([long, *runs[6:].curricula], runs.initial_loss[0])
    np.testing.assert_array_equal(losses, loaded.simulate([long, *runs[6:].curricula], runs.initial_loss[0]))
    assert np.isfinite(losses[0]).all()
    np.testing.assert_allclose(losses[1:, : STEPS + 1], runs[6:].loss, atol=0.5)
    again = loaded.refit(runs[:6]).simulate([long], runs.initial_loss[0])
    np.testing.assert_allclose(again, losses[:1], rtol=1e-9)


@pytest.mark.parametrize("reason", ["few runs", "losses without log-odds", "runs that show nothing"])
def test_where_there_are_no_dynamics(rng, reason):
    runs, _ = known_runs(rng, effects=np.zeros((16, 5)) if reason == "runs that show nothing" else None)
    if reason == "losses without log-odds":
        runs = with_losses(runs, runs.loss - 5)
    train = runs[:3] if reason == "few runs" else runs[:6]
    fit = EffectsSimulator(kernel="effects").fit(train)
    assert fit.dynamics_ is None
    assert np.isfinite(fit.simulate(runs.curricula, runs.initial_loss)).all()
    plain = EffectsSimulator().fit(train)
    asked = runs.curricula, runs.initial_loss
    np.testing.assert_array_equal(fit.simulate(*asked), plain.simulate(*asked))


@pytest.mark.parametrize("schedule", ["warm-up from nothing", "decay to nothing", "every other step"])
def test_rates_may_be_nothing(rng, schedule):
    runs, _, _ = log_linear_runs(rng, 6)
    up = np.linspace(0, 1e-3, STEPS)
    rates = {"warm-up from nothing": up, "decay to nothing": up[::-1]}.get(
        schedule, up * (np.arange(STEPS) % 2)
    )
    scheduled = replaced(runs, learning_rate=rates)
    auto = AutoSimulator().fit(scheduled)
    assert np.isfinite(auto.simulate(runs.curricula, runs.initial_loss)).all()
    assert EffectsSimulator(kernel="effects").fit(scheduled).dynamics_ is not None


def test_a_run_that_diverged_is_no_overflow(rng):
    runs, _, _ = log_linear_runs(rng, 6)
    losses = runs.loss
    losses[3, 20:, 1] = 800.0
    fit = EffectsSimulator(kernel="effects").fit(with_losses(runs, losses))
    assert np.isfinite(fit.simulate(runs.curricula, runs.initial_loss)).all()


def test_a_second_fit_forgets_the_dynamics_of_the_first(rng):
    runs, _, _ = log_linear_runs(rng, 6)
    fit = EffectsSimulator(kernel="effects").fit(runs)
    assert fit.dynamics_ is not None
    fit.fit(runs[:3])  # too few for one
    assert fit.dynamics_ is None
    assert fit.kernel_penalties_ == []
    fresh = EffectsSimulator(kernel="effects").fit(runs[:3])
    asked = runs.curricula, runs.initial_loss
    np.testing.assert_array_equal(fit.simulate(*asked), fresh.simulate(*asked))
