"""The ridge solvers against the explicit dense design, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regressions import dense_design, dense_solution, make_problem, metric
from scipy import sparse
from sklearn.linear_model import Ridge

from simfluence import ridge
from simfluence.ridge import iterative
from simfluence.ridge.cholesky import uses_dual

CPU = torch.device("cpu")
SOLVERS = ("iterative", "cholesky")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def solve(problem, penalty, solver="auto", **options):
    """θ [block, n, test]"""
    return ridge.solve_ridge(problem, [penalty], CPU, solver, **options).coefficients[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("free", [0, 1])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [10, 60])  # fewer and more than columns
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e4])
def test_solvers_agree_with_the_dense_normal_equations(rng, solver, blocks, free, shared, rows, penalty):
    problem = make_problem(rng, rows=rows, blocks=blocks, free=free, shared=shared, missing=0.2)
    found = ridge.solve_ridge(problem, [penalty], CPU, solver)
    assert found.solver == solver
    assert not found.singular.any()
    assert (found.residual <= ridge.EXACT).all()
    assert (found.iterations > 0) == (solver == "iterative")
    np.testing.assert_allclose(found.coefficients[0], dense_solution(problem, penalty), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_coefficients_are_those_of_scikit_learn(rng, solver):
    problem = make_problem(rng, n=30, rows=200, tests=4)
    found = solve(problem, 0.7, solver).reshape(problem.columns, -1)
    for z in range(problem.n_tests):
        reference = Ridge(alpha=0.7, fit_intercept=False, solver="cholesky")
        reference.fit(dense_design(problem, z), problem.target[:, z])
        np.testing.assert_allclose(found[:, z], reference.coef_, rtol=0, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 15),
    rows=st.integers(1, 50),
    tests=st.sampled_from([1, 2, 16, 17, 33]),
    blocks=st.integers(1, 2),
    batch=st.integers(1, 5),
    log_penalty=st.floats(-1, 4),
)
def test_any_problem_same_answer(seed, n, rows, tests, blocks, batch, log_penalty):
    rng = np.random.default_rng(seed)
    problem = make_problem(rng, n, rows, tests, blocks=blocks, batch=batch, missing=0.1)
    one, other = (solve(problem, 10**log_penalty, solver) for solver in SOLVERS)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_several_penalties_are_solved_as_each_alone(rng, solver):
    problem = make_problem(rng, n=20, rows=150, tests=19)
    penalties = [1.0, 1e3, 1e-2]  # in no order
    found = ridge.solve_ridge(problem, penalties, CPU, solver)
    assert found.residual.shape == (3, 19)
    for number, penalty in enumerate(penalties):
        np.testing.assert_allclose(found.coefficients[number], dense_solution(problem, penalty), atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_parts_of_a_problem_are_solved_alone(rng, solver):
    """Some test examples, and some rows."""
    problem = make_problem(rng, n=10, rows=80, tests=20)
    whole = solve(problem, 0.5, solver)
    np.testing.assert_allclose(solve(problem.tests(slice(17, 19)), 0.5, solver), whole[..., 17:19], atol=1e-9)
    rows = np.arange(0, 80, 2)
    zeroed = ridge.RidgeProblem(
        problem.counts,
        [np.where(np.arange(80)[:, None] % 2, 0.0, scale) for scale in problem.scales],
        np.where(np.arange(80)[:, None] % 2, 0.0, problem.target),
    )
    np.testing.assert_allclose(solve(problem.rows(rows), 0.5, solver), solve(zeroed, 0.5, solver), atol=1e-9)


def test_known_coefficients_are_recovered(rng):
    problem = make_problem(rng, n=10, rows=400)
    truth = rng.normal(size=(2, 10, 3))
    target = np.stack([dense_design(problem, z) @ truth[..., z].ravel() for z in range(3)], axis=1)
    exact = ridge.RidgeProblem(problem.counts, problem.scales, target)
    for solver in SOLVERS:
        np.testing.assert_allclose(solve(exact, 1e-9, solver), truth, atol=1e-6)


def test_without_penalty_and_rank_the_smallest_solution_is_flagged(rng):
    problem = make_problem(rng, n=20, rows=15)
    found = ridge.solve_ridge(problem, [0.0], CPU)
    assert found.solver == "cholesky"
    assert found.singular.all()
    for z in range(problem.n_tests):
        least = np.linalg.lstsq(dense_design(problem, z), problem.target[:, z])[0]
        np.testing.assert_allclose(found.coefficients[0, ..., z].ravel(), least, atol=1e-6)


def test_the_solver_is_chosen(rng):
    own, shared = make_problem(rng), make_problem(rng, shared=True)
    assert ridge.solve_ridge(own, [1.0], CPU).solver == "iterative"
    assert ridge.solve_ridge(shared, [1.0], CPU).solver == "cholesky"
    assert ridge.solve_ridge(own, [1.0, 0.0], CPU).solver == "cholesky"
    wide = make_problem(rng, n=2500, rows=3000, blocks=1, shared=True)
    assert ridge.solve_ridge(wide, [1e3], CPU).solver == "iterative"


def test_few_rows_are_iterated_in_the_dual(rng):
    """Where they are few and batches small; an example that is not penalised has no dual."""
    problem = make_problem(rng, n=300, rows=20, batch=2)
    assert uses_dual(problem)
    assert iterative._matrix(problem)[1]
    np.testing.assert_allclose(solve(problem, 0.3, "iterative"), dense_solution(problem, 0.3), atol=1e-8)
    assert not uses_dual(make_problem(rng, n=300, rows=20, free=1))
    assert not uses_dual(make_problem(rng, n=10, rows=60))


def test_what_is_not_solved_is_reported_and_may_be_factorized(rng, monkeypatch):
    problem = make_problem(rng, n=40, rows=300, tests=5)
    monkeypatch.setattr(iterative, "MAX_ITERATIONS", 2)
    found = ridge.solve_ridge(problem, [1.0], CPU, "iterative")
    assert found.iterations <= 2
    assert (found.residual > ridge.EXACT).all()
    exact = dense_solution(problem, 1.0)
    assert np.abs(found.coefficients[0] - exact).max() > 1e-6
    ridge.replace_unconverged(problem, 1.0, found, CPU)
    np.testing.assert_allclose(found.coefficients[0], exact, atol=1e-9)
    assert (found.residual == 0).all()


def test_systems_that_converged_or_are_too_large_are_not_factorized(rng, monkeypatch):
    problem = make_problem(rng, tests=4)
    found = ridge.solve_ridge(problem, [1.0], CPU, "iterative")
    before = found.coefficients.copy()
    found.residual[0, 2] = 1.0
    monkeypatch.setattr(ridge, "_OWN_SIZE", 1)
    ridge.replace_unconverged(problem, 1.0, found, CPU)
    np.testing.assert_array_equal(found.coefficients, before)
    monkeypatch.setattr(ridge, "_OWN_SIZE", 1000)
    found.coefficients[0] += 1.0
    ridge.replace_unconverged(problem, 1.0, found, CPU)
    np.testing.assert_allclose(found.coefficients[0, ..., 2], before[0, ..., 2], atol=1e-9)
    np.testing.assert_array_equal(found.coefficients[0, ..., [0, 1, 3]], before[0, ..., [0, 1, 3]] + 1.0)


def test_residuals_are_those_of_the_normal_equations(rng):
    """√(rᵀM⁻¹r) relative to its size at 0, M being the part of the matrix that is within an example."""
    problem = make_problem(rng, n=9, rows=80, tests=4)
    found = ridge.solve_ridge(problem, [0.5], CPU, "iterative", tolerance=1e-3)
    for z in range(4):
        x = dense_design(problem, z)
        system, side = x.T @ x + 0.5 * metric(problem), x.T @ problem.target[:, z]
        example = np.tile(np.arange(9), 2)
        inverse = np.linalg.inv(np.where(example[:, None] == example, system, 0.0))
        r = side - system @ found.coefficients[0, ..., z].ravel()
        expected = np.sqrt(r @ inverse @ r / (side @ inverse @ side))
        assert found.residual[0, z] <= 1e-3
        assert found.residual[0, z] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("free", [0, 1])
def test_nearly_collinear_blocks_are_solved(rng, free):
    """What single precision cannot resolve is refined."""
    problem = make_problem(rng, n=60, rows=900, tests=5, free=free)
    scales = [1 + 0.001 * rng.normal(size=(900, 5)), np.ones((900, 5))]
    problem = ridge.RidgeProblem(problem.counts, scales, problem.target, free)
    for penalty in (1e-4, 1.0):
        expected = dense_solution(problem, penalty)
        np.testing.assert_allclose(
            solve(problem, penalty, "iterative"), expected, atol=1e-6 * np.abs(expected).max()
        )


@pytest.mark.parametrize("factor", [1e-150, 1e-30, 1e30, 1e150])
def test_targets_of_any_size_are_solved_to_the_same_digits(rng, factor):
    """Single precision sees neither 1e-30 nor 1e30: corrections are scaled."""
    problem = make_problem(rng, n=6, rows=40, tests=4)
    reference = solve(problem, 1.0, "iterative")
    other = ridge.RidgeProblem(problem.counts, problem.scales, factor * problem.target)
    np.testing.assert_allclose(solve(other, 1.0, "iterative") / factor, reference, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-18, 1.0, 1e8])
def test_losses_of_any_size_in_one_test_example(rng, factor):
    """One that diverged, say: the scales grow with the targets."""
    problem = make_problem(rng, n=30, rows=400, tests=4)
    scales, target = [scale.copy() for scale in problem.scales], problem.target.copy()
    scales[0][:, 1] *= factor
    target[:, 1] *= factor
    other = ridge.RidgeProblem(problem.counts, scales, target)
    penalties = [1e-4, 1.0, 1e4]
    found = ridge.solve_ridge(other, penalties, CPU, "iterative", tolerance=3e-6).coefficients
    for penalty, theta in zip(penalties, found, strict=True):
        for z in (0, 1):
            x = dense_design(other, z)
            size = np.linalg.norm(np.vstack([x, np.sqrt(penalty) * np.eye(x.shape[1])]), axis=0)
            system = np.vstack([x / size, np.diag(np.sqrt(penalty) / size)])
            right = np.concatenate([target[:, z], np.zeros(x.shape[1])])
            true = x @ (np.linalg.lstsq(system, right, rcond=None)[0] / size)
            fitted = x @ theta[..., z].ravel()
            assert np.linalg.norm(fitted - true) < 1e-4 * np.linalg.norm(target[:, z])


@pytest.mark.parametrize("penalty", [1e-20, 1e-4, 1e20, 1e30])
def test_penalties_of_any_size(rng, penalty):
    problem = make_problem(rng, n=12, rows=60)
    counts = problem.counts.toarray()
    counts[:, 0] = 0  # an example that never occurs
    problem = ridge.RidgeProblem(sparse.csr_array(counts), problem.scales, problem.target)
    found = solve(problem, penalty, "iterative")
    assert (found[:, 0] == 0).all()
    if penalty >= 1e-4:  # below, the other is singular to rounding
        np.testing.assert_allclose(found, solve(problem, penalty, "cholesky"), rtol=1e-6, atol=1e-10)


def test_nothing_to_explain_is_explained_by_nothing(rng):
    problem = make_problem(rng, tests=3)
    target = problem.target.copy()
    target[:, 1] = 0
    found = ridge.solve_ridge(
        ridge.RidgeProblem(problem.counts, problem.scales, target), [1.0], CPU, "iterative"
    )
    assert (found.coefficients[0, ..., 1] == 0).all()
    assert (found.residual <= ridge.EXACT).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_the_test_examples(rng, threads):
    problem = make_problem(rng, n=8, rows=60, tests=50)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = solve(problem, 1.0, "iterative")
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found, dense_solution(problem, 1.0), atol=1e-9)
