"""The effects simulator against models of known effects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from families import cut, known_runs, replaced, skill, with_losses

from simfluence import Curriculum, RunSet
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable
from simfluence.simulators import EffectsSimulator, MeanTrajectory


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_known_effects_are_recovered_up_to_the_average_batch(rng):
    runs, effects = known_runs(rng, runs=20, n=8)
    fit = EffectsSimulator(decay=0.0, penalty=1e-4, link="identity").fit(runs[:16])
    found = fit.model_.effects[0]
    np.testing.assert_allclose(found - found.mean(0), effects - effects.mean(0), atol=2e-3)
    assert skill(fit, runs[:16], runs[16:]) > 0.99


def test_average_effects_are_those_on_the_log_odds(rng):
    """A model with log-odds that are linear in what was taken in, seen through either link."""
    runs, effects = known_runs(rng, runs=20, n=8)
    linked = with_losses(runs, np.logaddexp(0, runs.loss))
    scores = -effects + 0.01 * rng.normal(size=effects.shape)
    for given in (None, scores):
        fit = EffectsSimulator(given, penalty=1e-4, link="log_odds").fit(linked)
        found = fit.model_.average_effects()
        np.testing.assert_allclose(found - found.mean(0), effects - effects.mean(0), atol=2e-3)
    small = with_losses(runs, np.logaddexp(0, runs.loss[:, :1] + 1e-3 * (runs.loss - runs.loss[:, :1])))
    found = EffectsSimulator(penalty=1e-4, link="identity").fit(small).model_.average_effects()
    np.testing.assert_allclose(1e3 * (found - found.mean(0)), effects - effects.mean(0), atol=2e-3)


def test_momentum_matters(rng):
    runs, _ = known_runs(rng, noise=0.002)
    with_momentum = skill(EffectsSimulator(link="identity").fit(runs[:8]), runs[:8], runs[8:])
    without = EffectsSimulator(momentum=0.0, noise_correlation=0.0, link="identity").fit(runs[:8])
    assert with_momentum > max(0.9, skill(without, runs[:8], runs[8:]))


def test_the_recorded_momentum_is_taken(rng):
    runs, _ = known_runs(rng, beta=0.0, optimizer={"class": "SGD"})
    fit = EffectsSimulator(link="identity").fit(runs[:8])
    assert fit.model_.settings.momentum.beta == 0.0
    assert skill(fit, runs[:8], runs[8:]) > 0.9
    assert EffectsSimulator().fit(replaced(runs, optimizer={})[:4]).model_.settings.momentum.beta == 0.9
    assert EffectsSimulator(momentum=0.5).fit(runs[:4]).model_.settings.momentum.beta == 0.5


def test_true_scores_make_few_runs_enough(rng):
    runs, effects = known_runs(rng, noise=0.01, n=40)
    few = runs[:4]
    plain = skill(EffectsSimulator(link="identity").fit(few), few, runs[4:])
    informed = EffectsSimulator(-7 * effects, link="identity").fit(few)
    assert skill(informed, few, runs[4:]) > max(0.8, plain)
    assert (informed.model_.coefficients[0] < 0).all()  # positive scores lower losses


def test_shared_groups_are_used_like_scores(rng):
    groups = [f"g{i % 5}" for i in range(40)]
    effects = np.array([[-0.05 * (i % 5 == z) for z in range(5)] for i in range(40)])
    runs, _ = known_runs(rng, n=40, effects=effects, noise=0.02, groups=groups)
    test = ExampleTable(pd.DataFrame({"id": list("abcde"), "group": [f"g{z}" for z in range(5)]}))
    plain = EffectsSimulator(link="identity").fit(runs[:5])
    grouped = EffectsSimulator(link="identity").fit(RunSet(runs.runs, runs.train, test)[:5])
    assert len(plain.model_.scores) == 0
    assert skill(grouped, runs[:5], runs[5:]) > 0.2 + max(0, skill(plain, runs[:5], runs[5:]))


def test_left_out_predictions_are_nearly_those_of_refits(rng):
    """Not exactly: the spread of noise, centring and calibration are those of all runs."""
    runs, _ = known_runs(rng, noise=0.005)
    fit = EffectsSimulator(penalty=0.1).fit(runs)
    refit = EffectsSimulator(penalty=0.1).fit(runs[1:])
    simulated = refit.simulate(runs.curricula[:1], runs.initial_loss[:1])[0]
    deviation = runs.loss[0] - runs[1:].loss.mean(0)
    assert np.abs(simulated - fit.out_of_fold_[0]).max() < 0.1 * np.abs(deviation).max()


def test_the_error_is_that_of_out_of_fold_predictions(rng):
    runs, _ = known_runs(rng, noise=0.01)
    fit = EffectsSimulator().fit(runs[:8])
    errors = np.square(fit.out_of_fold(runs[:8]) - runs[:8].loss)[:, 1:]
    assert fit.error_ == pytest.approx(errors.mean())
    assert fit.penalty_errors_[f"{fit.penalty_:g}"] == fit.error_ == min(fit.penalty_errors_.values())


def test_validation_runs_count_like_runs_that_were_left_out(rng):
    runs, _ = known_runs(rng, noise=0.01)
    fit = EffectsSimulator(penalty=0.1).fit(runs[:6], runs[6:9])
    plain = EffectsSimulator(penalty=0.1).fit(runs[:6])
    asked = runs.curricula, runs.initial_loss
    np.testing.assert_array_equal(fit.simulate(*asked), plain.simulate(*asked))
    wrong = np.square(fit.simulate(*asked) - runs.loss)[6:9, 1:].mean()
    assert fit.error_ == pytest.approx((6 * plain.error_ + 3 * wrong) / 9)


def test_an_infinite_penalty_is_the_mean_trajectory(rng):
    runs, _ = known_runs(rng)
    fit = EffectsSimulator(penalty=np.inf, link="identity").fit(runs)
    mean = MeanTrajectory().fit(runs)
    np.testing.assert_allclose(
        fit.simulate(runs.curricula, runs.initial_loss), mean.simulate(runs.curricula, runs.initial_loss)
    )


@pytest.mark.parametrize("runs_used", [1, 2])
def test_one_or_two_runs_stay_near_the_mean_trajectory(rng, runs_used):
    runs, _ = known_runs(rng)
    train = runs[:runs_used]
    fit = EffectsSimulator().fit(train)
    assert skill(fit, train, runs[2:]) > -0.2


def test_initial_losses_that_differ_are_used(rng):
    runs, _ = known_runs(rng, runs=16)
    shifted = with_losses(runs, runs.loss + rng.normal(size=(16, 1, 5)))
    fit = EffectsSimulator(link="identity").fit(shifted[:12])
    assert fit.model_.with_initial
    assert not EffectsSimulator().fit(runs[:12]).model_.with_initial
    assert skill(fit, shifted[:12], shifted[12:]) > 0.9


def test_the_log_odds_link_recovers_a_model_in_that_space(rng):
    runs, _ = known_runs(rng, runs=16, noise=0.001)
    linked = with_losses(runs, np.logaddexp(0, 2 * (runs.loss - 2)))
    train, test = linked[:12], linked[12:]
    by_default = EffectsSimulator().fit(train)
    assert by_default.model_.settings.link == "log_odds"
    plain = skill(EffectsSimulator(link="identity").fit(train), train, test)
    assert skill(by_default, train, test) > max(0.95, plain)


def test_losses_at_or_below_zero_have_no_log_odds(rng):
    runs, _ = known_runs(rng)
    fit = EffectsSimulator(kernel="effects").fit(with_losses(runs, runs.loss - 5))
    assert fit.model_.settings.link == "identity"
    assert fit.dynamics_ is None


def test_runs_of_different_length_recorded_every_third_step(rng):
    runs, _ = known_runs(rng, runs=16)
    shorter = [cut(run, 30 if number % 2 else 24, every=3) for number, run in enumerate(runs)]
    fit = EffectsSimulator().fit(RunSet(shorter[:12], runs.train, runs.test))
    np.testing.assert_array_equal(fit.grid_, np.arange(0, 31, 3))
    assert skill(fit, runs[:12], runs[12:]) > 0.9


def test_edited_curricula_of_other_lengths_and_batch_sizes(rng):
    runs, _ = known_runs(rng)
    fit = EffectsSimulator().fit(runs)
    curricula = [Curriculum.from_batches([[0]], 16), Curriculum.from_batches([[1, 2, 3, 4]] * 45, 16)]
    losses = fit.simulate(curricula, runs.initial_loss[0])
    assert losses.shape == (2, 46, 5)
    assert np.isnan(losses[0, 2:]).all()
    assert np.isfinite(losses[1]).all()


def test_effects_are_proportional_to_the_learning_rate(rng):
    """Without a drift, and with it: what deviates from the mean is in proportion to the rate."""
    runs, effects = known_runs(rng, runs=20, n=8, beta=0.0, optimizer={"class": "SGD"})
    rates = np.linspace(2.0, 0.5, 30)
    scaled = []
    for run in runs:
        counts = np.stack([np.bincount(batch, minlength=8) for batch in run.curriculum])
        change = (rates / rates.mean())[:, None] * (counts @ effects)
        scaled.append(run.loss[0] + np.concatenate([np.zeros((1, 5)), np.cumsum(change, axis=0)]))
    scheduled = replaced(with_losses(runs, scaled), learning_rate=rates)
    fit = EffectsSimulator(penalty=1e-4, link="identity", noise_correlation=0.0).fit(scheduled[:16])
    asked = scheduled[16:].curricula, scheduled[16:].initial_loss
    np.testing.assert_allclose(fit.simulate(*asked), scheduled[16:].loss, atol=0.02)
    doubled = fit.simulate(*asked, learning_rate=2 * rates)
    change = scheduled[16:].loss - scheduled[16:].loss[:, :1]
    usual = change.mean(0)
    np.testing.assert_allclose(
        doubled - doubled.mean(0), 2 * (change - usual), atol=0.05 * np.abs(2 * (change - usual)).max()
    )
    still = fit.simulate(*asked, learning_rate=0 * rates)
    np.testing.assert_allclose(still, still[:1].repeat(4, axis=0), atol=1e-9)  # the drift alone
    with pytest.raises(RunDataError, match="did not log their learning rates"):
        EffectsSimulator().fit(runs[:4]).simulate(*asked, learning_rate=rates)


def test_left_out_losses_are_of_every_step(rng):
    runs, _ = known_runs(rng, noise=0.005)
    fit = EffectsSimulator(penalty=0.1, max_rows=len(runs) * 10).fit(runs)
    assert len(fit.grid_) == 11  # of 31
    losses = fit.out_of_fold(runs)
    assert losses.shape == runs.loss.shape
    np.testing.assert_array_equal(losses[:, fit.grid_], fit.out_of_fold_)
    np.testing.assert_allclose(losses[:, 1], (2 * losses[:, 0] + losses[:, 3]) / 3, rtol=1e-12)


def test_bad_input_is_named(rng):
    runs, effects = known_runs(rng)
    for wrong in (
        {"penalty": 0.0},
        {"momentum": 1.0},
        {"decay": 1.0},
        {"noise_correlation": 1.0},
        {"link": "x"},
        {"kernel": "x"},
    ):
        with pytest.raises(ValueError, match="must"):
            EffectsSimulator(**wrong)
    with pytest.raises(ValueError, match="kernel='scores' takes scores="):
        EffectsSimulator(kernel="scores")
    with pytest.raises(ValueError, match=r"\[train, test\]"):
        EffectsSimulator(scores=effects.T).fit(runs)
    with pytest.raises(ValueError, match="finite"):
        EffectsSimulator(scores=effects * np.nan).fit(runs)
    with pytest.raises(ValueError, match="too small for a stable solution"):
        EffectsSimulator(penalty=1e-300).fit(with_losses(runs, np.ones((12, 31, 5))))


def test_runs_may_be_evaluated_at_different_steps(rng):
    """Every fifth step on average, at other steps in each run: most of the skill stays."""
    runs, _ = known_runs(rng, runs=16)
    uneven = []
    for run in runs[:12]:
        at = np.flatnonzero(rng.random(31) < 0.2)
        at = np.unique([0, *at, 30])
        uneven.append(dataclasses.replace(run, metrics={"loss": run.loss[at]}, evaluated=at))
    few, all_steps = (
        skill(EffectsSimulator(penalty=0.01).fit(made), runs[:12], runs[12:])
        for made in (RunSet(uneven, runs.train, runs.test), runs[:12])
    )
    assert all_steps > 0.9
    assert few > 0.85 * all_steps
