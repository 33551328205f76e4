"""The ridge solvers against dense normal equations, scikit-learn, and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regressions import dense_design, dense_solution, make_problem
from scipy import sparse
from sklearn.linear_model import Ridge

from simfluence import ridge
from simfluence.ridge import iterative
from simfluence.ridge.iterative import solve_iterative
from simfluence.ridge.problem import uses_dual

CPU = torch.device("cpu")
SOLVERS = ("iterative", "cholesky")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 30),
    rows=st.integers(5, 60),
    tests=st.sampled_from([1, 3, 16, 19]),
    blocks=st.integers(1, 2),
    batch=st.integers(1, 5),
    missing=st.sampled_from([0.0, 0.2]),
    shared=st.booleans(),
    log_penalty=st.floats(-2, 4),
)
def test_solvers_agree_with_dense_normal_equations(
    seed, n, rows, tests, blocks, batch, missing, shared, log_penalty
):
    """Fewer and more rows than coefficients, hence both primal and dual systems."""
    rng, penalty = np.random.default_rng(seed), 10**log_penalty
    problem = make_problem(rng, n, rows, tests, blocks=blocks, batch=batch, missing=missing, shared=shared)
    expected = dense_solution(problem, penalty)
    for solver in SOLVERS:
        found = ridge.solve_ridge(problem, [penalty], CPU, solver)
        assert found.solver == solver
        assert not found.singular.any()
        np.testing.assert_allclose(found.coefficients[0], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rows", [15, 200])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e6])
def test_an_example_that_is_not_penalised(rng, solver, rows, blocks, penalty):
    problem = make_problem(rng, rows=rows, blocks=blocks, free=1, missing=0.1)
    found = ridge.solve_ridge(problem, [penalty], CPU, solver)
    np.testing.assert_allclose(found.coefficients[0], dense_solution(problem, penalty), rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_coefficients_are_those_of_scikit_learn(rng, solver):
    problem = make_problem(rng, n=30, rows=200, tests=4)
    found = ridge.solve_ridge(problem, [0.7], CPU, solver).coefficients.reshape(problem.columns, -1)
    for z in range(problem.n_tests):
        reference = Ridge(alpha=0.7, fit_intercept=False, solver="cholesky")
        reference.fit(dense_design(problem, z), problem.target[:, z])
        np.testing.assert_allclose(found[:, z], reference.coef_, rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [10, 200])  # primal and dual
@pytest.mark.parametrize("tolerance", [3e-6, 1e-11])
def test_several_penalties_in_any_order(rng, solver, n, tolerance):
    problem = make_problem(rng, n=n, rows=150, tests=19, batch=1 if n == 200 else 3)
    assert uses_dual(problem) == (n == 200)
    penalties = [1.0, 1e3, 1e-2]
    found = ridge.solve_ridge(problem, penalties, CPU, solver, tolerance)
    assert (found.residual <= tolerance).all()
    for penalty, theta in zip(penalties, found.coefficients, strict=True):
        np.testing.assert_allclose(theta, dense_solution(problem, penalty), rtol=0, atol=30 * tolerance**0.9)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_primal_and_dual_iterations_agree(rng, monkeypatch, blocks, missing):
    problem = make_problem(rng, n=60, rows=50, tests=5, blocks=blocks, missing=missing)
    found = [solve_iterative(problem, [0.5], 1e-11)]
    monkeypatch.setattr(iterative, "uses_dual", lambda problem: False)
    found.append(solve_iterative(problem, [0.5], 1e-11))
    np.testing.assert_allclose(found[0].coefficients, found[1].coefficients, rtol=0, atol=1e-8)


def test_nearly_collinear_blocks_and_small_penalties(rng):
    """What single precision cannot resolve is refined in double precision."""
    level = 1 + 1e-3 * rng.normal(size=(900, 5))
    other = make_problem(rng, n=60, rows=900, tests=5)
    problem = ridge.RidgeProblem(other.counts, [level, np.ones((900, 1))], other.target)
    found = ridge.solve_ridge(problem, [1e-4], CPU, "iterative")
    assert (found.residual <= ridge.EXACT).all()
    expected = dense_solution(problem, 1e-4)
    np.testing.assert_allclose(found.coefficients[0], expected, atol=1e-6 * np.abs(expected).max())


def test_without_a_penalty_the_smallest_solution_is_flagged(rng):
    problem = make_problem(rng, n=20, rows=15)
    found = ridge.solve_ridge(problem, [0.0], CPU)
    assert found.solver == "cholesky"
    assert found.singular.all()
    for z in range(problem.n_tests):
        least = np.linalg.lstsq(dense_design(problem, z), problem.target[:, z])[0]
        np.testing.assert_allclose(found.coefficients[0][..., z].ravel(), least, atol=1e-6)


def test_what_does_not_converge_is_said_and_factorized_where_asked(rng, monkeypatch):
    problem = make_problem(rng, n=40, rows=300, tests=20)
    monkeypatch.setattr(iterative, "MAX_ITERATIONS", 3)
    found = ridge.solve_ridge(problem, [1e-2], CPU, "iterative")
    assert found.iterations == 3
    assert (found.residual > ridge.EXACT).all()
    ridge.replace_unconverged(problem, 1e-2, found, CPU)
    assert (found.residual == 0).all()
    np.testing.assert_allclose(found.coefficients[0], dense_solution(problem, 1e-2), rtol=0, atol=1e-8)
    again = ridge.solve_ridge(problem, [1e-2], CPU, "iterative")
    monkeypatch.setattr(ridge, "_OWN_SIZE", 10)
    ridge.replace_unconverged(problem, 1e-2, again, CPU)
    assert (again.residual > ridge.EXACT).all()


def test_residuals_are_measured_whatever_the_iterations_say(rng, monkeypatch):
    from simfluence.kernels import conjugate_gradients as kernels

    monkeypatch.setattr(kernels, "conjugate_gradients", lambda *_: 1)
    found = ridge.solve_ridge(make_problem(rng), [1.0], CPU, "iterative")
    np.testing.assert_allclose(found.residual, 1.0)


def test_nothing_to_explain_is_zero_at_once(rng):
    problem = make_problem(rng)
    problem.target[:, 1] = 0
    found = ridge.solve_ridge(problem, [1.0], CPU, "iterative")
    assert (found.coefficients[..., 1] == 0).all()
    assert (found.residual <= ridge.EXACT).all()


@pytest.mark.parametrize("factor", [1e-150, 1e-30, 1e30, 1e150])
def test_losses_of_any_size_are_solved_to_the_same_digits(rng, factor):
    """Single precision sees neither 1e-30 nor 1e30: corrections are scaled."""
    problem = make_problem(rng, blocks=1)
    reference = ridge.solve_ridge(problem, [1.0], CPU, "iterative").coefficients
    other = ridge.RidgeProblem(problem.counts, problem.scales, factor * problem.target)
    found = ridge.solve_ridge(other, [1.0], CPU, "iterative").coefficients
    np.testing.assert_allclose(found / factor, reference, rtol=1e-8)


@pytest.mark.parametrize("factor", [1e-18, 1e16, 1e18])
def test_one_test_example_that_diverged_leaves_the_others_alone(rng, factor):
    problem = make_problem(rng, n=30, rows=400, tests=4)
    scales, target = [problem.scales[0].copy(), problem.scales[1]], problem.target.copy()
    scales[0][:, 1] *= factor
    target[:, 1] *= factor
    found = ridge.solve_ridge(ridge.RidgeProblem(problem.counts, scales, target), [1.0], CPU, "iterative")
    expected = dense_solution(problem, 1.0)
    np.testing.assert_allclose(found.coefficients[0][..., [0, 2, 3]], expected[..., [0, 2, 3]], atol=1e-8)
    assert np.isfinite(found.coefficients).all()


@pytest.mark.parametrize("penalty", [1e-20, 1e20, 1e30])
def test_penalties_of_any_size(rng, penalty):
    counts = make_problem(rng, rows=80).counts.toarray()
    counts[:, 0] = 0  # an example that never occurs
    other = make_problem(rng, rows=80)
    problem = ridge.RidgeProblem(sparse.csr_array(counts), other.scales, other.target)
    found = ridge.solve_ridge(problem, [penalty], CPU, "iterative")
    assert (found.residual <= ridge.EXACT).all()
    assert (found.coefficients[0, :, 0] == 0).all()
    if penalty > 1:
        np.testing.assert_allclose(found.coefficients[0], dense_solution(problem, penalty), rtol=1e-8)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_the_test_examples(rng, threads):
    problem = make_problem(rng, tests=40)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ridge.solve_ridge(problem, [1.0], CPU, "iterative").coefficients
    finally:
        torch.set_num_threads(before)
    for z in (0, 20, 39):
        alone = ridge.solve_ridge(problem.tests(slice(z, z + 1)), [1.0], CPU, "iterative").coefficients
        np.testing.assert_allclose(found[..., z], alone[..., 0], atol=1e-9)


def test_which_solver_is_chosen(rng):
    own, shared = make_problem(rng), make_problem(rng, blocks=1, shared=True)
    assert ridge.solve_ridge(own, [1.0], CPU).solver == "iterative"
    assert ridge.solve_ridge(own, [1.0, 0.0], CPU).solver == "cholesky"
    assert ridge.solve_ridge(shared, [1.0], CPU).solver == "cholesky"
    wide = make_problem(rng, n=2100, rows=2500, blocks=1, shared=True)
    assert ridge.solve_ridge(wide, [1.0], CPU).solver == "iterative"
