"""Bilinear effects: recovered, solved exactly, and carried over to examples never seen."""

from __future__ import annotations

import numpy as np
import pytest
from families import known_runs, skill

from simfluence.curriculum import Curriculum
from simfluence.runs import RunSet
from simfluence.simulators import FeatureSimulator, load_simulator


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
    fit = FeatureSimulator(h_train, h_test, noise_memory=0.0).fit(runs[:6])
    assert skill(fit, runs[:6], runs[6:]) > 0.95


def test_the_kronecker_solution_is_the_ridge_solution(rng):
    """Against the normal equations over all (row, test) pairs, without whitening and drift."""
    runs, h_train, h_test = bilinear_runs(rng)
    few = runs[:2]
    fit = FeatureSimulator(h_train, h_test, penalty=3.0, decay=0.0, noise_memory=0.0).fit(few)
    features = fit._features()
    rows = np.concatenate([features(c) for c in few.curricula]) @ fit.train_features_
    rows -= np.tile((rows[:30] + rows[30:]) / 2, (2, 1))
    target = np.diff(few.loss, axis=1)
    target = (target - target.mean(0)).reshape(60, 12)
    design = np.kron(rows * fit.row_scale_, fit.test_features_)
    weights = np.linalg.solve(design.T @ design + 3.0 * np.eye(16), design.T @ target.ravel())
    np.testing.assert_allclose(fit.weights_[0], weights.reshape(4, 4), atol=1e-10)


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


def test_moving_to_the_same_examples_changes_nothing(rng):
    runs, h_train, h_test = bilinear_runs(rng)
    fit = FeatureSimulator(h_train, h_test, penalty=1.0).fit(runs)
    moved = fit.transfer(h_train, h_test, runs.initial_loss)
    moved.drift_ = fit.drift_  # seen test examples have drifts of their own
    np.testing.assert_allclose(
        moved.simulate(runs.curricula, runs.initial_loss), fit.simulate(runs.curricula, runs.initial_loss)
    )


def test_saved_and_loaded(rng, tmp_path):
    runs, h_train, h_test = bilinear_runs(rng)
    fit = FeatureSimulator(h_train, h_test).fit(runs[:5])
    fit.save(tmp_path / "features")
    loaded = load_simulator(tmp_path / "features")
    first = fit.simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_allclose(loaded.simulate(runs.curricula, runs.initial_loss), first)
    np.testing.assert_allclose(loaded.fit(runs[:5]).simulate(runs.curricula, runs.initial_loss), first)


def test_bad_features_are_named(rng):
    runs, h_train, h_test = bilinear_runs(rng)
    with pytest.raises(ValueError, match="train_features"):
        FeatureSimulator(h_train[:3], h_test).fit(runs)
    with pytest.raises(ValueError, match="transfer"):
        FeatureSimulator(penalty=1.0).fit(runs).transfer(h_train, h_test, runs.initial_loss)
