"""Options of the published family: solvers, centers, penalties, intervals, missing losses, diagnostics.

Kept self-contained: runs are made by a naive loop over steps.
"""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from families import cut
from sklearn.linear_model import Ridge

from simfluence import AdditiveSimulator, Curriculum, LinearSimulator, MultiplicativeSimulator, RunSet
from simfluence.ridge import EXACT
from simfluence.runs import ExampleTable, Run
from simfluence.simulators import SimulationWarning, load_simulator
from simfluence.simulators.markov import diagnostics
from simfluence.simulators.markov.penalty import PENALTIES, choose_penalty
from simfluence.simulators.markov.rollout import simulate_linear

N, M, B = 10, 3, 3
FAMILY = [AdditiveSimulator, MultiplicativeSimulator, LinearSimulator]


def naive(batches, initial, slope, intercept):
    """L_t − L_{t-1} = Σ_i (A'_i L_{t-1} + B_i), one step after the other."""
    series = [np.asarray(initial, float)]
    for batch in batches:
        before = series[-1]
        series.append(before + sum(slope[i] * before + intercept[i] for i in batch))
    return np.array(series)


def make_runs(n_runs=8, steps=25, *, noise=0.01, seed=0):
    """Runs a linear model made, as run set, with A' and B [train, test]."""
    rng = np.random.default_rng(seed)
    slope, intercept = rng.normal(-0.02, 0.02, (N, M)), rng.normal(0, 0.03, (N, M))
    batches = rng.integers(0, N, (n_runs, steps, B))
    losses = [naive(batches[r], rng.uniform(1, 3, M), slope, intercept) for r in range(n_runs)]
    losses = np.array(losses) + noise * rng.normal(size=(n_runs, steps + 1, M))
    runs = RunSet.from_arrays(batches, losses, train=N)
    return runs, slope, intercept


@pytest.fixture(scope="module")
def runs():
    return make_runs()[0]


@pytest.mark.parametrize("center", ["zero", "identity", "pooled"])
@pytest.mark.parametrize("solver", ["iterative", "cholesky"])
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


@pytest.mark.parametrize("lengths", [[25] * 8, [25, 10, 12, 9, 8, 25, 11, 9]], ids=["equal", "ragged"])
def test_cross_validation_is_what_separate_fits_and_rollouts_say(runs, lengths):
    """In the ragged set all the longest runs are in one fold."""
    cuts = [cut(run, steps) for run, steps in zip(runs, lengths, strict=True)]
    runs = RunSet(cuts, runs.train, runs.test)
    found = LinearSimulator().fit(runs)
    number, errors = np.arange(len(runs)) % 5, {}
    for penalty in PENALTIES:
        folds = []
        for k in range(5):
            held_out = runs[np.flatnonzero(number == k)]
            fitted = LinearSimulator(penalty=penalty).fit(runs[np.flatnonzero(number != k)])
            simulated = fitted.simulate(held_out.curricula, held_out.initial_loss)
            folds.append(np.nanmean(np.square(simulated - held_out.loss)[:, 1:]))
        errors[penalty] = np.mean(folds)
    assert found.penalty_ == min(errors, key=errors.get)
    assert len(found.penalty_errors_) >= 2
    for penalty, error in found.penalty_errors_.items():
        nearest = min(PENALTIES, key=lambda value: abs(value - float(penalty)))
        assert error == pytest.approx(errors[nearest], rel=1e-3)


def test_a_grid_of_ones_own(runs, tmp_path):
    simulator = AdditiveSimulator(penalties=[100, 1]).fit(runs)
    assert list(simulator.penalty_errors_) == ["1", "100"]
    simulator.save(tmp_path / "s.safetensors")
    assert repr(load_simulator(tmp_path / "s.safetensors")) == repr(simulator)


def searched(errors: dict[float, float], few: dict[float, float] | None = None) -> tuple[float, list[float]]:
    """(the penalty that is chosen, those compared on all test examples) for made-up errors."""
    table = {True: few or errors, False: errors}
    penalty, known = choose_penalty(
        lambda rough, penalties: np.array([table[rough][value] for value in penalties]), list(errors)
    )
    assert known == {value: errors[value] for value in known}
    return penalty, list(known)


def test_the_best_penalty_and_its_neighbours_are_compared():
    errors = dict(zip([0.01, 0.1, 1.0, 10.0, 100.0], [9.0, 3.0, 1.0, 2.0, 4.0], strict=True))
    assert searched(errors) == (1.0, [0.1, 1.0, 10.0])
    few = dict(zip(errors, [9.0, 8.0, 7.0, 6.0, 5.0], strict=True))  # mislead, and are not believed
    assert searched(errors, few)[0] == 1.0


def test_ties_go_to_the_larger_penalty_and_nothing_finite_is_an_error():
    assert searched({0.1: 1.0, 1.0: 1.0, 10.0: 2.0})[0] == 1.0
    assert searched({0.1: 1.0, 1.0: np.inf, 10.0: np.inf})[0] == 0.1
    with pytest.raises(ValueError, match="range of floats"):
        searched({0.1: np.inf, 1.0: np.inf})


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
            used = [np.bincount(batch, minlength=N) * usual / len(batch) for batch in steps]
            for begin, end in pairwise(np.flatnonzero(np.isfinite(values[:, z]))):
                counts = np.sum(used[begin:end], axis=0)  # between two known losses
                rows.append(np.concatenate([counts * values[begin, z], counts]))
                after.append(values[end, z] + (end - begin - 1) * values[begin, z])
        reference = Ridge(0.7, fit_intercept=False, solver="cholesky").fit(np.array(rows), after)
        np.testing.assert_allclose(found.A_[:, z], reference.coef_[:N], atol=1e-8)
        np.testing.assert_allclose(found.B_[:, z], reference.coef_[N:], atol=1e-8)
    assert found.diagnostics_["rows_left_out"] == 4
    assert found.diagnostics_["rows_used"] == 63 * M - 4


def test_diagnostics_are_plain_and_kept(runs, tmp_path):
    simulator = LinearSimulator(penalty=1.0, solver="iterative").fit(runs)
    said = simulator.diagnostics_
    assert json.loads(json.dumps(said)) == said
    assert said["columns"] == 2 * N
    assert said["iterations"] > 0
    assert said["residual"] <= EXACT
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


def test_growth_is_the_largest_over_runs_of_any_length():
    rng, lengths = np.random.default_rng(0), (3, 11, 0, 7, 5)
    curricula = [Curriculum.from_batches(rng.integers(0, 6, (steps, 2)).tolist(), 6) for steps in lengths]
    slope = rng.normal(0.1, 0.2, (6, 3))
    largest = np.ones(3)
    for curriculum in curricula:
        response = np.ones(3)
        for batch in curriculum:
            response = response * (1 + slope[batch].sum(0))
            largest = np.maximum(largest, np.abs(response))
    found = diagnostics.largest_growth(curricula, slope, 2.0)
    np.testing.assert_allclose(found, largest, rtol=1e-12)


def test_the_range_of_losses_is_that_of_the_finite_ones():
    loss = np.array([[[2.0, np.nan], [0.5, np.inf], [1.0, -np.inf]], [[3.0, 1.0], [1.0, 1.0], [0.25, 4.0]]])
    runs = RunSet.from_arrays(np.zeros((2, 2, 1), int), loss, train=1, allow_nonfinite=True)
    assert LinearSimulator(penalty=1.0).fit(runs).loss_range_ == [0.25, 4.0]


def test_what_leaves_the_recorded_range_is_said():
    longer = [Curriculum.from_batches([[0]] * 40, 1), Curriculum.from_batches([[0]] * 10, 1)]
    simulator = MultiplicativeSimulator(penalty=1e-9).fit(growing_runs())
    with pytest.warns(SimulationWarning, match="1 of 2 simulated runs leave the range"):
        losses = simulator.simulate(longer, [1.0, 1.0])
    assert losses[0, -1, 0] > simulator.loss_range_[1]
    with pytest.warns(SimulationWarning):
        far = simulator.simulate([Curriculum.from_batches([[0]] * 4000, 1)], [1.0, 1.0])
    assert np.isinf(far[0, -1, 0])


def test_bad_options_are_named():
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
        simulate_linear([Curriculum.from_batches(s, N)], np.ones((1, M)), slope, intercept, 4.0)
        for s in (small, large)
    )
    np.testing.assert_allclose(a, b, rtol=1e-14)
    np.testing.assert_allclose(b[0], naive(large, np.ones(M), slope, intercept), rtol=1e-12)
