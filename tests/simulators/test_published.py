"""The published family against independent truth: known coefficients and scikit-learn's ridge."""

from __future__ import annotations

import numpy as np
import pytest
from families import synthetic_runs
from sklearn.linear_model import Ridge

from simfluence import AdditiveSimulator, LinearSimulator, MultiplicativeSimulator, RunSet


def test_linear_recovers_known_coefficients() -> None:
    runs, slope, intercept = synthetic_runs(n_runs=12)
    simulator = LinearSimulator(penalty=1e-10).fit(runs)
    np.testing.assert_allclose(simulator.A_, slope, atol=1e-5)
    np.testing.assert_allclose(simulator.B_, intercept, atol=1e-5)
    np.testing.assert_allclose(simulator.simulate(runs.curricula, runs.initial_loss), runs.loss, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_to_scikit_learn(penalty: float, batch: int) -> None:
    """L_t on [L_{t-1} u, u] with the columns of each model, no intercept: the published objective."""
    runs, *_ = synthetic_runs(noise=0.05, batch=batch)
    u = np.concatenate([curriculum.counts().toarray() for curriculum in runs.curricula])
    for z in range(4):
        before = np.concatenate([run.loss[:-1, z] for run in runs])
        after = np.concatenate([run.loss[1:, z] for run in runs])
        ridge = Ridge(penalty, fit_intercept=False, solver="cholesky")
        scaled = before[:, None] * u
        linear = LinearSimulator(penalty).fit(runs)
        expected = ridge.fit(np.hstack([scaled, u]), after).coef_
        np.testing.assert_allclose(np.concatenate([linear.A_[:, z], linear.B_[:, z]]), expected, atol=1e-8)
        multiplicative = MultiplicativeSimulator(penalty).fit(runs)
        np.testing.assert_allclose(multiplicative.A_[:, z], ridge.fit(scaled, after).coef_, atol=1e-8)
        additive = AdditiveSimulator(penalty).fit(runs)
        np.testing.assert_allclose(additive.B_[:, z], ridge.fit(u, after - before).coef_, atol=1e-8)


def test_repeated_examples_in_a_batch_count_twice() -> None:
    rng = np.random.default_rng(0)
    batches = rng.integers(0, 5, (6, 20, 3))
    effect = rng.normal(0, 0.1, (5, 2))
    change = effect[batches].sum(axis=2)
    losses = 2 + np.concatenate([np.zeros((6, 1, 2)), np.cumsum(change, axis=1)], axis=1)
    runs = RunSet.from_arrays(batches, losses, train=5)
    np.testing.assert_allclose(AdditiveSimulator(penalty=1e-9).fit(runs).B_, effect, atol=1e-6)


@pytest.mark.parametrize("center", ["zero", "identity", "pooled"])
def test_what_a_large_penalty_leaves(center: str) -> None:
    runs, *_ = synthetic_runs(noise=0.05)
    simulator = LinearSimulator(penalty=1e12, center=center).fit(runs)
    if center == "zero":
        np.testing.assert_allclose(simulator.A_, 0, atol=1e-8)
        np.testing.assert_allclose(simulator.B_, 0, atol=1e-8)
    elif center == "identity":
        np.testing.assert_allclose(simulator.A_, 1 / 3, atol=1e-8)
        np.testing.assert_allclose(simulator.B_, 0, atol=1e-8)
    else:  # an ordinary line through all transitions, the same for every example
        np.testing.assert_allclose(
            simulator.A_, np.broadcast_to(simulator.A_[:1], simulator.A_.shape), atol=1e-6
        )
        for z in range(4):
            before = np.concatenate([run.loss[:-1, z] for run in runs])
            after = np.concatenate([run.loss[1:, z] for run in runs])
            slope, intercept = np.polyfit(before, after, 1)
            np.testing.assert_allclose(simulator.A_[0, z] * 3, slope, atol=1e-4)
            np.testing.assert_allclose(simulator.B_[0, z] * 3, intercept, atol=1e-4)


def test_a_penalty_is_chosen_by_rollouts_of_validation_runs() -> None:
    runs, *_ = synthetic_runs(noise=0.05, n_runs=10)
    simulator = LinearSimulator().fit(runs[:6], runs[6:])
    errors = {
        penalty: np.mean(
            np.square(
                LinearSimulator(float(penalty))
                .fit(runs[:6])
                .simulate(runs[6:].curricula, runs[6:].initial_loss)
                - runs[6:].loss
            )
        )
        for penalty in simulator.penalty_errors_
    }
    assert f"{simulator.penalty_:g}" == min(errors, key=errors.__getitem__)


def test_bad_hyperparameters_are_named() -> None:
    with pytest.raises(ValueError, match="penalty must be"):
        LinearSimulator(penalty=-1.0)
    with pytest.raises(ValueError, match="center must be one of"):
        LinearSimulator(center="middle")  # type: ignore[arg-type]
