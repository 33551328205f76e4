"""Options of the published family: centers, penalties, schedules, intervals, diagnostics, clipping.

Kept self-contained: runs are made by a naive loop over steps.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from simfluence import AdditiveSimulator, Curriculum, LinearSimulator, MultiplicativeSimulator, RunSet
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable, Run
from simfluence.simulators import SimulationWarning, load_simulator
from simfluence.simulators.markov.diagnostics import largest_growth
from simfluence.simulators.markov.penalty import PENALTIES, choose_penalty
from simfluence.simulators.markov.rollout import simulate_linear

N, M, B = 10, 3, 3
FAMILY = [AdditiveSimulator, MultiplicativeSimulator, LinearSimulator]


def naive(batches, initial, slope, intercept, rates=None):
    """L_t − L_{t-1} = ρ_t Σ_i (A'_i L_{t-1} + B_i), one step after the other."""
    series = [np.asarray(initial, float)]
    for step, batch in enumerate(batches):
        rate = 1.0 if rates is None else rates[step]
        before = series[-1]
        series.append(before + rate * sum(slope[i] * before + intercept[i] for i in batch))
    return np.array(series)


def make_runs(n_runs=8, steps=25, *, noise=0.01, seed=0, rates=None):
    """Runs a linear model made, as run set, with A' and B [train, test]."""
    rng = np.random.default_rng(seed)
    slope, intercept = rng.normal(-0.02, 0.02, (N, M)), rng.normal(0, 0.03, (N, M))
    batches = rng.integers(0, N, (n_runs, steps, B))
    losses = [
        naive(batches[r], rng.uniform(1, 3, M), slope, intercept, None if rates is None else rates[r])
        for r in range(n_runs)
    ]
    losses = np.array(losses) + noise * rng.normal(size=(n_runs, steps + 1, M))
    runs = RunSet.from_arrays(batches, losses, train=N, learning_rate=rates)
    return runs, slope, intercept


@pytest.fixture(scope="module")
def runs():
    return make_runs()[0]


@pytest.mark.parametrize("center", ["zero", "identity", "pooled"])
@pytest.mark.parametrize("solver", ["cholesky", "iterative"])
@pytest.mark.parametrize("family", FAMILY)
def test_every_solver_gives_the_same(runs, family, solver, center):
    expected = family(penalty=0.5, center=center, solver="cholesky").fit(runs)
    found = family(penalty=0.5, center=center, solver=solver).fit(runs)
    np.testing.assert_allclose(found.A_, expected.A_, atol=1e-8)
    np.testing.assert_allclose(found.B_, expected.B_, atol=1e-8)
    assert found.diagnostics_["solver"] == solver


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("center", ["zero", "pooled"])
def test_permuting_examples_permutes_coefficients(runs, family, center):
    place = np.random.default_rng(1).permutation(N)
    renamed = RunSet.from_arrays(
        [[place[batch] for batch in curriculum] for curriculum in runs.curricula], runs.loss, train=N
    )
    a, b = (family(penalty=0.3, center=center).fit(r) for r in (runs, renamed))
    np.testing.assert_allclose(b.A_[place], a.A_, atol=1e-9)
    np.testing.assert_allclose(b.B_[place], a.B_, atol=1e-9)


def test_cross_validation_is_what_separate_fits_and_rollouts_say(runs):
    found = LinearSimulator(folds=4).fit(runs)
    number = np.arange(len(runs)) % 4
    for penalty, error in found.penalty_errors_.items():
        folds = []
        for k in range(4):
            held_out = runs[np.flatnonzero(number == k)]
            fitted = LinearSimulator(penalty=float(penalty)).fit(runs[np.flatnonzero(number != k)])
            simulated = fitted.simulate(held_out.curricula, held_out.initial_loss)
            folds.append(np.mean(np.square(simulated - held_out.loss)[:, 1:]))
        assert error == pytest.approx(np.mean(folds), rel=1e-3)
    assert f"{found.penalty_:g}" == min(found.penalty_errors_, key=found.penalty_errors_.__getitem__)


def test_a_grid_of_ones_own(runs, tmp_path):
    simulator = AdditiveSimulator(penalties=[100, 1]).fit(runs)
    assert list(simulator.penalty_errors_) == ["1", "100"]
    simulator.save(tmp_path / "s.safetensors")
    assert repr(load_simulator(tmp_path / "s.safetensors")) == repr(simulator)


def test_effects_proportional_to_the_learning_rate():
    rates = 1e-3 * np.linspace(2, 0.2, 25) * np.ones((8, 1))
    usual = float(np.quantile(rates, 0.5, method="inverted_cdf"))
    runs, slope, intercept = make_runs(noise=0.0, rates=rates / usual)
    runs = RunSet.from_arrays([list(c) for c in runs.curricula], runs.loss, train=N, learning_rate=rates)
    simulator = LinearSimulator(penalty=1e-9, rate_scaled=True).fit(runs)
    assert simulator.usual_rate_ == pytest.approx(usual)
    np.testing.assert_allclose(simulator.A_ - 1 / B, slope, atol=1e-4)
    np.testing.assert_allclose(simulator.B_, intercept, atol=1e-4)
    by_default = simulator.simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_allclose(by_default, runs.loss, atol=1e-4)
    np.testing.assert_allclose(
        simulator.simulate(runs.curricula, runs.initial_loss, learning_rate=rates), by_default
    )
    still = simulator.simulate(runs.curricula, runs.initial_loss, learning_rate=np.zeros(25))
    np.testing.assert_allclose(still, np.repeat(runs.initial_loss[:, None], 26, axis=1))
    other = simulator.simulate(runs.curricula[:1], runs.initial_loss[:1], learning_rate=rates[0, ::-1])
    expected = naive(
        runs.curricula[0], runs.initial_loss[0], simulator.A_ - 1 / B, simulator.B_, rates[0, ::-1] / usual
    )
    np.testing.assert_allclose(other[0], expected, atol=1e-9)


def test_learning_rates_that_are_missing_or_misshapen_are_named(runs):
    with pytest.raises(RunDataError, match="learning rate"):
        LinearSimulator(penalty=1.0, rate_scaled=True).fit(runs)
    plain = LinearSimulator(penalty=1.0).fit(runs)
    asked = runs.curricula, runs.initial_loss
    np.testing.assert_array_equal(plain.simulate(*asked, learning_rate=np.ones(25)), plain.simulate(*asked))
    scaled = make_runs(rates=np.ones((8, 25)))[0]
    fitted = LinearSimulator(penalty=1.0, rate_scaled=True).fit(scaled)
    with pytest.raises(ValueError, match=r"\[step\]"):
        fitted.simulate(runs.curricula, runs.initial_loss, learning_rate=np.ones(3))


def test_losses_recorded_every_few_steps():
    """Effects that do not depend on the loss add up exactly over an interval."""
    rng = np.random.default_rng(0)
    intercept = rng.normal(0, 0.05, (N, M))
    made = []
    for number, every in enumerate([1, 2, 3, 5, 1, 4]):
        batches = rng.integers(0, N, (30, B))
        losses = naive(batches, np.ones(M), np.zeros((N, M)), intercept)
        evaluated = np.arange(0, 31, every)
        made.append(
            Run(
                id=f"run-{number}",
                curriculum=Curriculum.from_batches(batches, N),
                metrics={"loss": losses[evaluated]},
                evaluated=evaluated,
                learning_rate=np.full(30, np.nan),
                train_loss=np.full(30, np.nan),
            )
        )
    sparse_runs = RunSet(made, ExampleTable.numbered(N), ExampleTable.numbered(M))
    found = AdditiveSimulator(penalty=1e-9).fit(sparse_runs)
    np.testing.assert_allclose(found.B_, intercept, atol=1e-6)


def test_runs_of_different_length_missing_losses_and_ragged_batches():
    """Against scikit-learn on the rows that are there, one test example at a time."""
    rng = np.random.default_rng(0)
    batches = [[rng.integers(0, N, rng.integers(1, 5)) for _ in range(steps)] for steps in (20, 31, 12)]
    losses = [2 + np.cumsum(rng.normal(0, 0.1, (len(steps) + 1, M)), axis=0) for steps in batches]
    losses[0][4:7, 1] = np.nan
    losses[2][-1, 0] = np.nan
    runs = RunSet.from_arrays(batches, losses, train=N, allow_nonfinite=True)
    found = LinearSimulator(penalty=0.7).fit(runs)
    usual = found.batch_size_
    for z in range(M):
        rows, after = [], []
        for steps, values in zip(batches, losses, strict=True):
            for t, batch in enumerate(steps):
                if np.isfinite(values[t : t + 2, z]).all():
                    counts = np.bincount(batch, minlength=N) * usual / len(batch)
                    rows.append(np.concatenate([counts * values[t, z], counts]))
                    after.append(values[t + 1, z])
        reference = Ridge(0.7, fit_intercept=False, solver="cholesky").fit(np.array(rows), after)
        np.testing.assert_allclose(found.A_[:, z], reference.coef_[:N], atol=1e-8)
        np.testing.assert_allclose(found.B_[:, z], reference.coef_[N:], atol=1e-8)
    assert found.diagnostics_["rows_left_out"] == 5
    assert found.diagnostics_["rows_used"] == 63 * M - 5


def test_diagnostics_are_plain_and_kept(runs, tmp_path):
    simulator = LinearSimulator(penalty=1.0, solver="iterative").fit(runs)
    said = simulator.diagnostics_
    assert json.loads(json.dumps(said)) == said
    assert said["columns"] == 2 * N
    assert said["solver"] == "iterative"
    assert 0 < said["iterations"] < 100
    assert 0 < said["residual"] < 1e-10
    assert said["singular"] == 0
    simulator.save(tmp_path / "s.safetensors")
    assert load_simulator(tmp_path / "s.safetensors").diagnostics_ == said


def growing_runs():
    """α = 1.3 for the first test example and 0.9 for the second, whatever is fed."""
    steps = np.arange(21)
    losses = np.stack([1.3**steps, 0.9**steps], axis=-1)
    return RunSet.from_arrays(np.zeros((2, 20, 1), int), np.stack([losses, losses]), train=1)


def test_growth_is_said():
    said = MultiplicativeSimulator(penalty=1e-9).fit(growing_runs()).diagnostics_
    assert said["growth"][1] == pytest.approx(1.3**20, rel=1e-6)
    assert said["unstable"] == 0.5


def test_the_range_of_losses_is_that_of_the_finite_ones():
    loss = np.array([[[2.0, np.nan], [0.5, np.inf], [1.0, -np.inf]], [[3.0, 1.0], [1.0, 1.0], [0.25, 4.0]]])
    runs = RunSet.from_arrays(np.zeros((2, 2, 1), int), loss, train=1, allow_nonfinite=True)
    assert LinearSimulator(penalty=1.0).fit(runs).loss_range_ == [0.25, 4.0]


def test_what_leaves_the_recorded_range_is_said_flagged_and_clipped_if_asked():
    longer = [Curriculum.from_batches([[0]] * 40, 1), Curriculum.from_batches([[0]] * 10, 1)]
    simulator = MultiplicativeSimulator(penalty=1e-9).fit(growing_runs())
    with pytest.warns(SimulationWarning, match="1 of 2 simulated runs leave the range"):
        simulator.simulate(longer, [1.0, 1.0])
    clipped = MultiplicativeSimulator(penalty=1e-9, clip="range").fit(growing_runs())
    held = clipped.simulate(longer, [1.0, 1.0])  # no warning: warnings are errors here
    low, high = clipped.loss_range_
    assert np.nanmax(held) <= high + 0.1 * (high - low)
    with pytest.warns(SimulationWarning):
        far = simulator.simulate([Curriculum.from_batches([[0]] * 4000, 1)], [1.0, 1.0])
    assert np.isinf(far[0, -1, 0])


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="clip must be"):
        LinearSimulator(clip="all")
    with pytest.raises(ValueError, match="penalties to choose from"):
        LinearSimulator(penalties=[0.0, 1.0])
    with pytest.raises(ValueError, match="solver must be"):
        LinearSimulator(solver="svd")


def test_without_a_unique_solution_a_warning_counts_the_fits():
    tiny = RunSet.from_arrays([[[0, 1]]], [[[1.0, 2.0], [0.5, 1.5]]], train=3)
    with pytest.warns(SimulationWarning, match="2 of 2 fits"):
        LinearSimulator(penalty=0.0).fit(tiny)


def test_batches_weigh_as_one_of_the_usual_size():
    rng = np.random.default_rng(0)
    slope, intercept = rng.normal(0, 0.1, (N, M)), rng.normal(0, 0.1, (N, M))
    small, large = [[1, 2], [3, 4]], [[1, 1, 2, 2], [3, 3, 4, 4]]
    a, b = (
        simulate_linear([Curriculum.from_batches(s, N)], np.ones((1, M)), slope, intercept, batch_size=4.0)
        for s in (small, large)
    )
    np.testing.assert_allclose(a, b, rtol=1e-14)
    np.testing.assert_allclose(b[0], naive(large, np.ones(M), slope, intercept), rtol=1e-12)


def test_the_smallest_error_is_found_however_the_few_test_examples_mislead():
    grid, true = (
        [0.1, 1.0, 10.0, 100.0, 1000.0],
        np.array([5.0, 4.0, 3.0, 2.0, 1.0]),
    )  # of ascending penalties
    asked = []

    def errors_of(rough, penalties):
        asked.append((rough, penalties.tolist()))
        found = true[np.searchsorted(grid, penalties)]
        return -found if rough else found

    penalty, errors = choose_penalty(errors_of, grid)
    assert penalty == 1000.0
    assert errors == {0.1: 5.0, 1.0: 4.0, 10.0: 3.0, 100.0: 2.0, 1000.0: 1.0}
    assert asked[0] == (True, [1000.0, 100.0, 10.0])
    with pytest.raises(ValueError, match="range of floats"):
        choose_penalty(lambda rough, penalties: np.full(len(penalties), np.inf), grid)


def test_small_penalties_are_not_tried_once_errors_have_risen_three_times():
    asked = []

    def errors_of(rough, penalties):
        asked.extend(penalties.tolist())
        return np.abs(np.log10(penalties) - 3)  # best at 1000

    assert choose_penalty(errors_of, PENALTIES)[0] == 1000.0
    assert min(asked) > 1.0


@pytest.mark.parametrize("scaled", [False, True])
def test_growth_is_the_largest_over_runs_of_any_length(scaled):
    rng, lengths = np.random.default_rng(0), (3, 11, 0, 7, 5)
    curricula = [Curriculum.from_batches(rng.integers(0, 6, (steps, 2)).tolist(), 6) for steps in lengths]
    slope = rng.normal(0.1, 0.2, (6, 3))
    rates = rng.uniform(0.5, 2, (5, 11)) if scaled else None
    largest = np.ones(3)
    for run, curriculum in enumerate(curricula):
        response = np.ones(3)
        for step, batch in enumerate(curriculum):
            response = response * (1 + (1.0 if rates is None else rates[run, step]) * slope[batch].sum(0))
            largest = np.maximum(largest, np.abs(response))
    np.testing.assert_allclose(largest_growth(curricula, slope, 2.0, rates), largest, rtol=1e-12)


def test_pooling_without_a_penalty_is_no_pooling(runs):
    a, b = (LinearSimulator(penalty=0.0, center=center).fit(runs) for center in ("pooled", "identity"))
    np.testing.assert_allclose(a.A_, b.A_, atol=1e-9)
