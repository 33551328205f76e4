"""Bilinear effects: recovered, solved exactly, and carried over to examples never seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from families import ADAM, known_runs, replaced, skill

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import RunSet
from simfluence.simulators import EffectsSimulator, FeatureSimulator
from simfluence.simulators.effects.model import progress_basis
from simfluence.simulators.effects.transfer import predict_drift


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def bilinear_runs(rng, noise=0.002):
    h_train, h_test = rng.normal(size=(40, 4)), rng.normal(size=(12, 3))
    effects = 0.02 * h_train @ rng.normal(size=(4, 3)) @ h_test.T
    runs, _ = known_runs(rng, n=40, tests=12, effects=effects, noise=noise)
    return runs, h_train, h_test


def test_bilinear_effects_are_recovered(rng):
    runs, h_train, h_test = bilinear_runs(rng)
    fit = FeatureSimulator(h_train, h_test, noise_correlation=0.0).fit(runs[:6])
    assert skill(fit, runs[:6], runs[6:]) > 0.95


def dense(fit: FeatureSimulator, runs: RunSet, penalty: float):
    """The increments' covariance over all (row, test) pairs, and the parts of it, as plain matrices."""
    regression = fit._regression(fit.training_data(runs), None)
    rows, tests = regression.increments.shape
    x = regression.centered * regression.scale
    basis = progress_basis(regression.middle, regression.total, fit.decay)
    whitening = regression.whiten(np.eye(rows))
    kernel = np.zeros((rows, rows))
    for j in range(rows):
        for i in range(rows):
            kernel[j, i] = (x[j] @ fit._kernel("train") @ x[i]) * (basis[j] @ basis[i])
    kernel = whitening @ kernel @ whitening.T
    z = whitening @ (regression.interval[:, None] == np.arange(regression.intervals))
    covariance = np.kron(kernel, fit._kernel("test")) + penalty * np.eye(rows * tests)
    return regression, whitening, x, basis, covariance, np.kron(z, np.eye(tests))


@pytest.mark.parametrize("free", [0.0, 0.4])
def test_the_solution_is_that_of_generalised_least_squares(rng, free):
    """Effects, drift and left-out residuals against dense matrices over all (row, test) pairs."""
    effects = 0.02 * rng.normal(size=(6, 3)) @ rng.normal(size=(3, 4))
    runs, _ = known_runs(rng, n=6, tests=4, steps=7, runs=4, effects=effects, noise=0.01)
    h_train, h_test = rng.normal(size=(6, 2)), rng.normal(size=(4, 3))
    fit = FeatureSimulator(h_train, h_test, penalty=0.3, free=free).fit(runs)
    regression, whitening, x, basis, covariance, drifts = dense(fit, runs, 0.3)
    target = (whitening @ regression.increments).ravel()
    inverse = np.linalg.inv(covariance)

    def residual(inverse, drifts, target):
        carried = inverse @ drifts
        mu = np.linalg.solve(drifts.T @ carried, carried.T @ target)
        return inverse @ (target - drifts @ mu), mu

    alpha, mu = residual(inverse, drifts, target)
    alpha = alpha.reshape(28, 4)
    for k in range(basis.shape[1]):
        expected = fit._kernel("train") @ x.T @ np.diag(basis[:, k]) @ whitening.T @ alpha
        effects = regression.scale * expected @ fit._kernel("test")
        np.testing.assert_allclose(fit.model_.effects[k], effects, atol=1e-9)
    np.testing.assert_allclose(fit.model_.drift, mu.reshape(7, 4), atol=1e-9)
    out_of_fold = regression.solve(0.3).solution.left_out
    inside = np.arange(28 * 4) >= 7 * 4  # without the first run
    kept = np.linalg.inv(covariance[np.ix_(inside, inside)])
    alpha, mu = residual(kept, drifts[inside], target[inside])
    predicted = covariance[np.ix_(~inside, inside)] @ alpha + drifts[~inside] @ mu
    np.testing.assert_allclose(out_of_fold[:7].ravel(), target[~inside] - predicted, atol=1e-9)


def test_the_bilinear_form_is_what_its_kernels_say(rng):
    """free = 0: effects h_iᵀ W [1, h_z], W by ridge regression over all (row, test) pairs."""
    runs, h_train, h_test = bilinear_runs(rng)
    few = runs[:3]
    fit = FeatureSimulator(h_train, h_test, penalty=3.0, free=0.0, decay=0.0, noise_correlation=0.0).fit(few)
    regression = fit._regression(fit.training_data(few), None)
    spread = regression.spread[regression.interval][:, None]
    rows = regression.centered * regression.scale @ fit.features_["train"].values / spread
    target = regression.increments / spread
    rows, target = (part - np.tile(part.reshape(3, 30, -1).mean(0), (3, 1)) for part in (rows, target))
    tests = np.column_stack([np.ones(12), fit.features_["test"].values]) / np.sqrt(2)
    design = np.kron(rows, tests)
    weights = np.linalg.solve(design.T @ design + 3.0 * np.eye(16), design.T @ target.ravel())
    effects = fit.features_["train"].values @ weights.reshape(4, 4) @ tests.T
    np.testing.assert_allclose(fit.model_.effects[0], regression.scale * effects, atol=1e-9)


def test_without_features_it_is_the_effects_simulator(rng, monkeypatch):
    monkeypatch.setattr("simfluence.simulators.effects.regression.DRIFT_VARIANCE", 1e6)  # as good as free
    runs, _ = known_runs(rng, noise=0.005)
    losses = [
        made.fit(runs[:8]).simulate(runs.curricula, runs.initial_loss)
        for made in (FeatureSimulator(penalty=0.1), EffectsSimulator(penalty=0.1, link="identity", decay=0.3))
    ]
    np.testing.assert_allclose(*losses, atol=1e-5)


def test_unseen_examples_are_simulated(rng):
    runs, h_train, h_test = bilinear_runs(rng)
    old_test, new_test = np.arange(9), np.arange(9, 12)

    def of_tests(run_set, tests):
        batches = np.array([list(c) for c in run_set.curricula])
        return RunSet.from_arrays(
            batches, run_set.loss[:, :, tests], train=40, optimizer=run_set[0].optimizer
        )

    fit = FeatureSimulator(h_train, h_test[old_test]).fit(of_tests(runs[:8], old_test))
    held_out = of_tests(runs[8:], new_test)
    moved = fit.transfer(h_train[::-1], h_test[new_test], held_out.initial_loss)
    curricula = [Curriculum(39 - c.examples, c.offsets, 40) for c in held_out.curricula]
    simulated = moved.simulate(curricula, held_out.initial_loss)
    true = held_out.loss - held_out.loss.mean(0)
    found = simulated - simulated.mean(0)
    assert 1 - np.square(found - true).sum() / np.square(true).sum() > 0.8


def test_an_example_in_no_recorded_batch_acts_by_its_features(rng):
    """Ten of forty training examples are drawn in held-out runs alone."""
    h_train, h_test = rng.normal(size=(40, 4)), rng.normal(size=(12, 3))
    h_train /= np.linalg.norm(h_train, axis=1, keepdims=True)
    effects = 0.05 * h_train @ rng.normal(size=(4, 3)) @ h_test.T
    seen, _ = known_runs(rng, n=30, tests=12, runs=8, effects=effects[:30], noise=0.002)
    full, _ = known_runs(rng, n=40, tests=12, runs=6, effects=effects, noise=0.002)
    batches = np.array([list(curriculum) for curriculum in seen.curricula])
    train = RunSet.from_arrays(batches, seen.loss, train=40, optimizer=ADAM)

    def across(simulator):
        found = simulator.fit(train).simulate(full.curricula, full.initial_loss)
        found, true = found - found.mean(0), full.loss - full.loss.mean(0)
        return 1 - np.square(found - true).sum() / np.square(true).sum()

    assert across(FeatureSimulator(h_train, h_test)) > 0.97
    assert across(FeatureSimulator()) < 0.9


@pytest.mark.parametrize("with_scores", [False, True])
def test_moving_to_the_same_examples_changes_nothing(rng, with_scores):
    runs, h_train, h_test = bilinear_runs(rng)
    scores = [rng.normal(size=(40, 12)), 7 * rng.normal(size=(40, 12))] if with_scores else None
    fit = FeatureSimulator(h_train, h_test, scores=scores, free=0.0, penalty=1.0).fit(runs)
    simulated = fit.simulate(runs.curricula, runs.initial_loss)
    moved = [fit.transfer(None, h_test, runs.initial_loss, scores)]
    if not with_scores:
        moved += [fit.transfer(h_train), fit.transfer(h_train, h_test, runs.initial_loss)]
    for other in moved:
        if other.test_features is not fit.test_features:  # seen test examples have drifts of their own
            drift = other.model_.drift - other.model_.drift.mean(1, keepdims=True)
            drift += fit.model_.drift.mean(1, keepdims=True)
            other.model_ = dataclasses.replace(other.model_, drift=drift)
        found = other.simulate(runs.curricula, runs.initial_loss)
        np.testing.assert_allclose(found - found.mean(0), simulated - simulated.mean(0), atol=1e-9)
    np.testing.assert_allclose(fit.transfer().simulate(runs.curricula, runs.initial_loss), simulated)


def test_drifts_are_predicted_from_what_is_known_before_training(rng):
    """A drift that is linear in L_0 and features is found for tests not recorded, and noise is not fitted."""
    h, start = rng.normal(size=(40, 3)), rng.normal(size=(40, 1))
    drift = np.arange(1, 6)[:, None] * (1 + 0.5 * start[:, 0] + h @ [0.3, -0.2, 0.1])
    seen, new = slice(0, 30), slice(30, 40)
    found = predict_drift(drift[:, seen], start[seen], start[new], h[seen], h[new])
    assert np.square(found - drift[:, new]).sum() < 1e-3 * np.square(drift[:, new]).sum()
    noise = rng.normal(size=(5, 30))
    found = predict_drift(noise, start[seen], start[new], h[seen], h[new])
    np.testing.assert_allclose(found, noise.mean(1, keepdims=True) * np.ones(10), atol=1.0)


def test_a_simulator_of_other_examples_is_none_of_the_recorded_ones(rng):
    """What was transferred is about other tables: it is not taken for one of the recorded runs."""
    runs, h_train, h_test = bilinear_runs(rng)
    fit = FeatureSimulator(h_train, h_test, penalty=1.0).fit(runs[:5])
    for moved in (fit.transfer(None, h_test, runs.initial_loss), fit.transfer(h_train)):
        with pytest.raises(RunDataError, match="not those of these runs"):
            moved.check_examples(runs)
    fit.transfer().check_examples(runs)
    fit.check_examples(runs)


def test_rates_scale_what_features_predict(rng):
    runs, h_train, h_test = bilinear_runs(rng)
    rates = np.linspace(2e-3, 1e-3, 30)
    fit = FeatureSimulator(h_train, h_test, penalty=1.0).fit(replaced(runs, learning_rate=rates))
    asked = runs.curricula, runs.initial_loss
    usual, double, none = (fit.simulate(*asked, learning_rate=k * rates) for k in (1, 2, 0))
    np.testing.assert_allclose(usual, fit.simulate(*asked), rtol=1e-12)
    np.testing.assert_allclose(double - usual, usual - none, atol=1e-9)  # effects add up in proportion
    np.testing.assert_allclose(none - none.mean(0), 0, atol=1e-9)


def test_bad_features_are_named(rng):
    runs, h_train, h_test = bilinear_runs(rng)
    with pytest.raises(ValueError, match="train_features"):
        FeatureSimulator(h_train[:3], h_test).fit(runs)
    with pytest.raises(ValueError, match="transfer"):
        FeatureSimulator(penalty=1.0).fit(runs).transfer(h_train, h_test, runs.initial_loss)
    fit = FeatureSimulator(h_train, h_test, penalty=1.0).fit(runs)
    with pytest.raises(ValueError, match="initial_loss"):
        fit.transfer(None, h_test)
    with pytest.raises(ValueError, match="0 arrays of scores, but 1"):
        fit.transfer(None, h_test, runs.initial_loss, np.ones((40, 12)))
    with pytest.raises(ValueError, match="free"):
        FeatureSimulator(free=2.0)
