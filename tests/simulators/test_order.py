"""Models of the losses of several steps before: ``order`` above 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from simfluence import AdditiveSimulator, Curriculum, LinearSimulator, MultiplicativeSimulator, RunSet
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable, Run
from simfluence.simulators import load_simulator, make_simulator
from simfluence.simulators.markov.rollout import simulate_linear

N, M, B = 8, 3, 3


def naive(batches, initial, slopes, intercept, *, batch_size=None, rates=None, clip=None):
    """L_t = L_{t-1} + ρ_t Σ_i (Σ_j A_ij L_{t-j} + B_i), slopes [order, train, test], A_1 as A'."""
    losses = [np.asarray(initial, float)]
    for step, batch in enumerate(batches):
        weight = (1.0 if batch_size is None else batch_size / len(batch)) * (
            1 if rates is None else rates[step]
        )
        value = losses[-1].copy()
        for i in batch:
            for back, slope in enumerate(slopes):
                value += weight * slope[i] * losses[max(len(losses) - 1 - back, 0)]
            value += weight * intercept[i]
        losses.append(value if clip is None else np.clip(value, *clip))
    return np.array(losses)


def made_runs(order=2, n_runs=10, steps=30, noise=0.0, seed=0, rates=None):
    """Runs of a model of that order that settles, with its A' and A_j [order, train, test], and B."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(-0.03, 0.03, (order, N, M))
    intercept = rng.normal(0.05, 0.03, (N, M))
    batches = rng.integers(0, N, (n_runs, steps, B))
    losses = np.array(
        [
            naive(b, rng.uniform(1, 3, M), slopes, intercept, rates=None if rates is None else rates[r])
            for r, b in enumerate(batches)
        ]
    )
    losses[:, 1:] += noise * rng.normal(size=losses[:, 1:].shape)
    return RunSet.from_arrays(batches, losses, train=N, learning_rate=rates), slopes, intercept


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    order=st.integers(2, 4),
    widest=st.integers(1, 9),
    tests=st.integers(1, 5),
    without_intercept=st.booleans(),
    batch_size=st.sampled_from([None, 3.0]),
    with_rates=st.booleans(),
    clip=st.sampled_from([None, (0.5, 1.7)]),
    threads=st.integers(1, 2),
)
def test_rollouts_are_the_naive_loop(
    seed, order, widest, tests, without_intercept, batch_size, with_rates, clip, threads
):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 4)
    batches = [[rng.integers(0, N, rng.integers(1, widest + 1)) for _ in range(n)] for n in lengths]
    slopes = rng.normal(0, 0.1, (order, N, tests))
    intercept = rng.normal(0, 0.1, (N, tests)) * (not without_intercept)
    initial, rates = rng.uniform(1, 2, (4, tests)), rng.uniform(0, 2, (4, 10))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = simulate_linear(
            [Curriculum.from_batches(b, N) for b in batches],
            initial,
            slopes[0],
            None if without_intercept else intercept,
            lags=slopes[1:],
            batch_size=batch_size,
            rates=rates if with_rates else None,
            clip=clip,
        )
    finally:
        torch.set_num_threads(before)
    options = {"batch_size": batch_size, "clip": clip}
    for r, n in enumerate(lengths):
        factors = rates[r] if with_rates else None
        expected = naive(batches[r], initial[r], slopes, intercept, rates=factors, **options)
        np.testing.assert_allclose(found[r, : n + 1], expected, rtol=1e-10, atol=1e-12)
        assert (found[r, n:] == found[r, n]).all()


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("solver", ["primal", "dual", "iterative"])
def test_known_coefficients_are_recovered(order, solver):
    runs, slopes, intercept = made_runs(order)
    found = LinearSimulator(penalty=1e-9, order=order, solver=solver).fit(runs)
    np.testing.assert_allclose(found.A_ - 1 / B, slopes[0], atol=1e-4)
    np.testing.assert_allclose(found.A_lags_, slopes[1:], atol=1e-4)
    np.testing.assert_allclose(found.B_, intercept, atol=1e-4)
    np.testing.assert_allclose(found.simulate(runs.curricula, runs.initial_loss), runs.loss, atol=1e-4)


@pytest.mark.parametrize("center", ["zero", "identity", "pooled"])
def test_the_regression_is_that_of_scikit_learn(center):
    """On [L_{t-1} u, L_{t-2} u, L_{t-3} u, u], rows with an unknown loss left out."""
    runs, *_ = made_runs(3, noise=0.02)
    losses = runs.loss.copy()
    losses[2, 7, 1] = np.nan
    losses[3, 0, 0] = np.inf
    losses[4, -1, 0] = np.nan
    holed = RunSet.from_arrays([list(c) for c in runs.curricula], losses, train=N, allow_nonfinite=True)
    found = LinearSimulator(penalty=0.5, order=3, center=center).fit(holed)
    count = 0
    for z in range(M):
        rows, after = [], []
        for curriculum, values in zip(runs.curricula, losses[..., z], strict=True):
            for t, batch in enumerate(curriculum):
                past = [values[max(t - back, 0)] for back in range(3)]
                if np.isfinite([*past, values[t + 1]]).all():
                    counts = np.bincount(batch, minlength=N)
                    rows.append(np.concatenate([*(loss * counts for loss in past), counts]))
                    after.append(values[t + 1] - (past[0] if center != "zero" else 0))
        count += len(rows)
        coefficients = np.concatenate([found.A_[:, z], found.A_lags_[..., z].ravel(), found.B_[:, z]])
        if center != "zero":
            coefficients[:N] -= 1 / B
        x, y = np.array(rows), np.array(after)
        if center == "pooled":
            metric = np.kron(np.eye(4), np.eye(N) - 1 / N)
            expected = np.linalg.solve(x.T @ x + 0.5 * metric, x.T @ y)
        else:
            expected = Ridge(0.5, fit_intercept=False, solver="cholesky").fit(x, y).coef_
        np.testing.assert_allclose(coefficients, expected, atol=1e-7)
    assert found.rows_used_ == count


@pytest.mark.parametrize("family", [LinearSimulator, MultiplicativeSimulator])
def test_order_one_is_as_without(family):
    runs, *_ = made_runs(1, noise=0.02)
    a, b = family(penalty=0.3).fit(runs), family(penalty=0.3, order=1).fit(runs)
    np.testing.assert_array_equal(a.A_, b.A_)
    np.testing.assert_array_equal(a.B_, b.B_)
    assert len(b.A_lags_) == 0


def test_further_losses_that_are_penalised_away_leave_order_one():
    """Rollouts of order 2 with A_2 = 0 are those of order 1."""
    runs, slopes, intercept = made_runs(1)
    losses = simulate_linear(
        runs.curricula, runs.initial_loss, slopes[0], intercept, lags=np.zeros((2, N, M))
    )
    np.testing.assert_allclose(losses, runs.loss, rtol=1e-12)


def test_multiplicative_models_have_further_losses_too():
    runs, *_ = made_runs(2)
    found = MultiplicativeSimulator(penalty=1.0, order=2).fit(runs)
    assert found.A_lags_.shape == (1, N, M)
    assert (found.B_ == 0).all()
    losses = found.simulate(runs.curricula, runs.initial_loss)
    both = np.stack([found.A_ - 1 / B, *found.A_lags_])
    expected = naive(list(runs.curricula[3]), runs.initial_loss[3], both, found.B_)
    np.testing.assert_allclose(losses[3], expected, rtol=1e-10)


def test_a_penalty_is_chosen_by_rollouts_of_the_same_order():
    runs, *_ = made_runs(2, noise=0.02)
    found = LinearSimulator(order=2, penalties=[1e-2, 1.0, 1e2]).fit(runs[:7], runs[7:])
    for penalty, error in found.penalty_errors_.items():
        fitted = LinearSimulator(penalty=float(penalty), order=2).fit(runs[:7])
        simulated = fitted.simulate(runs[7:].curricula, runs[7:].initial_loss)
        assert error == pytest.approx(np.square(simulated - runs[7:].loss)[:, 1:].mean(), rel=1e-3)


def test_effects_proportional_to_the_learning_rate():
    rates = np.linspace(1.5, 0.5, 30) * np.ones((10, 1))
    usual = float(np.quantile(rates, 0.5, method="inverted_cdf"))
    runs, slopes, _ = made_runs(2, rates=rates / usual)
    found = LinearSimulator(penalty=1e-9, order=2, rate_scaled=True).fit(
        RunSet.from_arrays([list(c) for c in runs.curricula], runs.loss, train=N, learning_rate=rates)
    )
    np.testing.assert_allclose(found.A_lags_[0], slopes[1], atol=1e-3)
    np.testing.assert_allclose(found.simulate(runs.curricula, runs.initial_loss), runs.loss, atol=1e-3)


def test_growth_is_that_of_a_difference_in_the_initial_losses():
    """L_t = L_{t-1} + L_{t-2} / 2 from L_{-1} = L_0 = 1, whatever is fed."""
    expected = naive([[0]] * 12, np.ones(1), np.array([[[0.0]], [[0.5]]]), np.zeros((1, 1)))
    runs = RunSet.from_arrays(np.zeros((2, 12, 1), int), np.stack([expected, expected]), train=1)
    said = MultiplicativeSimulator(penalty=1e-9, order=2).fit(runs).diagnostics_
    assert said["growth"][1] == pytest.approx(expected[-1, 0], rel=1e-3)
    assert said["columns"] == 2


def test_saved_and_loaded(tmp_path):
    runs, *_ = made_runs(2, noise=0.02)
    simulator = make_simulator("linear", order=2, penalty=1.0).fit(runs)
    simulator.save(tmp_path / "s.safetensors")
    loaded = load_simulator(tmp_path / "s.safetensors")
    assert loaded.order == 2
    np.testing.assert_array_equal(
        loaded.simulate(runs.curricula, runs.initial_loss),
        simulator.simulate(runs.curricula, runs.initial_loss),
    )


def test_losses_of_every_step_are_needed():
    runs, *_ = made_runs(1, n_runs=3)
    sparse = Run(
        id="sparse",
        curriculum=runs[0].curriculum,
        metrics={"loss": runs.loss[0][::2]},
        evaluated=np.arange(0, 31, 2),
        learning_rate=np.full(30, np.nan),
        train_loss=np.full(30, np.nan),
    )
    mixed = RunSet([runs[1], sparse], ExampleTable.numbered(N), ExampleTable.numbered(M))
    LinearSimulator(penalty=1.0).fit(mixed)
    with pytest.raises(
        RunDataError, match=r"order 2 needs the losses of every step, but 1 of 2 runs, 'sparse'"
    ):
        LinearSimulator(penalty=1.0, order=2).fit(mixed)


@pytest.mark.parametrize("order", [0, 1.5])
def test_an_order_is_a_whole_number(order):
    with pytest.raises(ValueError, match="order must be a whole number"):
        LinearSimulator(order=order)


def test_additive_effects_have_no_order():
    with pytest.raises(ValueError, match="does not depend on earlier losses"):
        AdditiveSimulator(order=2)
