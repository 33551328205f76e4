"""The ridge solvers against the explicit dense design, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regressions import make_problem
from sklearn.linear_model import Ridge

from simfluence import ridge
from simfluence.ridge import path
from simfluence.ridge.normal_equations import OuterProducts

CPU = torch.device("cpu")
SOLVERS = ("primal", "dual", "iterative")


def dense_design(problem, z):
    counts = problem.counts.toarray()
    return np.hstack([scale[:, [z if scale.shape[1] > 1 else 0]] * counts for scale in problem.scales])


def metric(problem):
    n, k = problem.n, problem.blocks
    return np.kron(np.eye(k), np.eye(n) - (1.0 / n if problem.pooled else 0.0))


def dense_solution(problem, penalty):
    """[block, n, test], one test example at a time."""
    columns = []
    for z in range(problem.n_tests):
        x = dense_design(problem, z)
        columns.append(np.linalg.solve(x.T @ x + penalty * metric(problem), x.T @ problem.target[:, z]))
    return np.stack(columns, axis=-1).reshape(problem.blocks, problem.n, -1)


def solve_path(problem, penalties, tolerance=ridge.PATH_TOLERANCE):
    """θ [λ, block, n, test] on all rows."""
    rows = np.arange(problem.counts.shape[0])
    return ridge.Paths(problem, [rows], CPU).solve(0, penalties, tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("rows", [10, 60])  # fewer and more than columns
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e4])
def test_solvers_agree_with_the_dense_normal_equations(rng, solver, pooled, rows, penalty):
    problem = make_problem(rng, rows=rows, pooled=pooled, missing=0.2)
    found = ridge.solve_ridge(problem, penalty, solver, CPU)
    assert found.solver == solver
    assert not found.singular.any()
    np.testing.assert_allclose(found.coefficients, dense_solution(problem, penalty), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_coefficients_are_those_of_scikit_learn(rng, solver):
    problem = make_problem(rng, n=30, rows=200, tests=4)
    found = ridge.solve_ridge(problem, 0.7, solver, CPU).coefficients.reshape(problem.columns, -1)
    for z in range(problem.n_tests):
        reference = Ridge(alpha=0.7, fit_intercept=False, solver="cholesky")
        reference.fit(dense_design(problem, z), problem.target[:, z])
        np.testing.assert_allclose(found[:, z], reference.coef_, rtol=0, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 15),
    rows=st.integers(1, 50),
    blocks=st.integers(1, 3),
    batch=st.integers(1, 5),
    pooled=st.booleans(),
    log_penalty=st.floats(-1, 4),
)
def test_any_problem_same_answer(seed, n, rows, blocks, batch, pooled, log_penalty):
    problem = make_problem(
        np.random.default_rng(seed), n, rows, 2, blocks=blocks, batch=batch, pooled=pooled, missing=0.1
    )
    if pooled and rows < 3 * blocks:
        return  # the unpenalised averages need rows
    answers = [ridge.solve_ridge(problem, 10**log_penalty, solver, CPU) for solver in SOLVERS]
    if any(answer.singular.any() for answer in answers):
        return
    for answer in answers[1:]:
        np.testing.assert_allclose(answer.coefficients, answers[0].coefficients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("pooled", [False, True])
def test_one_design_for_all_tests_is_solved_as_if_they_had_their_own(rng, solver, pooled):
    own = make_problem(rng, blocks=1, tests=5, pooled=pooled)
    shared = ridge.RidgeProblem(own.counts, own.scales[:, :, :1], own.target, pooled)
    penalties = np.array([0.1, 1.0, 1.0, 10.0, 0.1])
    a, b = (ridge.solve_ridge(problem, penalties, solver, CPU) for problem in (own, shared))
    np.testing.assert_allclose(a.coefficients, b.coefficients, atol=1e-9)


def test_a_penalty_per_test_is_that_test_alone(rng):
    problem = make_problem(rng)
    penalties = np.array([0.01, 1.0, 100.0])
    for solver in SOLVERS:
        found = ridge.solve_ridge(problem, penalties, solver, CPU).coefficients
        for z, penalty in enumerate(penalties):
            alone = ridge.solve_ridge(problem.tests(slice(z, z + 1)), penalty, solver, CPU).coefficients
            np.testing.assert_allclose(found[..., z], alone[..., 0], atol=1e-9)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("which", ["own", "shared"])
def test_a_path_is_one_solution_a_penalty(rng, which, pooled):
    problem = make_problem(rng, n=20, rows=150, tests=7, blocks=1 if which == "shared" else 2, pooled=pooled)
    if which == "shared":
        problem = ridge.RidgeProblem(problem.counts, problem.scales[:, :, :1], problem.target, pooled)
    penalties = np.array([1e-2, 1.0, 1e3])
    found = solve_path(problem, penalties, 1e-11)
    for number, penalty in enumerate(penalties):
        np.testing.assert_allclose(found[number], dense_solution(problem, penalty), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kept", [0, 2**20])
def test_paths_on_some_rows_go_on_from_what_they_found(rng, monkeypatch, kept):
    problem = make_problem(rng, n=20, rows=150, tests=19)
    choices = [np.arange(0, 150, 2), np.arange(40, 150)]
    monkeypatch.setattr(path, "_KEPT_BYTES", kept)
    paths, penalties = ridge.Paths(problem, choices, CPU), np.array([1e-2, 1e3, 1.0])
    for number, rows in enumerate(choices):
        expected = np.stack([dense_solution(problem.rows(rows), penalty) for penalty in penalties])
        np.testing.assert_allclose(paths.solve(number, penalties), expected, atol=1e-4)
        exact = paths.solve(number, penalties[[2, 0]], 1e-11)
        np.testing.assert_allclose(exact, expected[[2, 0]], rtol=0, atol=1e-8)


@pytest.mark.parametrize("pooled", [False, True])
def test_paths_of_nearly_collinear_blocks_need_no_factors(rng, monkeypatch, pooled):
    """What single precision cannot resolve is refined."""
    problem = make_problem(rng, n=60, rows=900, tests=5, pooled=pooled)
    level = 1 + 0.1 * rng.normal(size=(900, 5))
    scales = np.stack([level, level + 0.01 * rng.normal(size=(900, 5)), np.ones((900, 5))])
    problem = ridge.RidgeProblem(problem.counts, scales, problem.target, pooled)
    factorized = []
    monkeypatch.setattr(path, "_factorize_others", lambda *a: factorized.append(a))
    penalties = 10.0 ** np.arange(-4, 5, 0.5)
    found = solve_path(problem, penalties)
    assert not factorized
    for number in (0, 8, 17):
        expected = dense_solution(problem, penalties[number])
        np.testing.assert_allclose(found[number], expected, atol=1e-3 * np.abs(expected).max())


def test_a_path_factorizes_what_does_not_converge(rng, monkeypatch):
    problem = make_problem(rng)
    monkeypatch.setattr(path, "_LIMIT", 2)
    found = solve_path(problem, np.array([1e-2, 1.0]))
    np.testing.assert_allclose(found[0], dense_solution(problem, 1e-2), rtol=0, atol=1e-8)


def test_known_coefficients_are_recovered(rng):
    problem = make_problem(rng, n=10, rows=400)
    truth = rng.normal(size=(2, 10, 3))
    target = np.stack(
        [dense_design(problem, z) @ truth[..., z].ravel() for z in range(problem.n_tests)], axis=1
    )
    exact = ridge.RidgeProblem(problem.counts, problem.scales, target)
    for solver in ("primal", "iterative"):
        found = ridge.solve_ridge(exact, 1e-9, solver, CPU).coefficients
        np.testing.assert_allclose(found, truth, atol=1e-6)


def test_without_penalty_and_rank_the_smallest_solution_is_flagged(rng):
    problem = make_problem(rng, n=20, rows=15)
    found = ridge.solve_ridge(problem, 0.0, device=CPU)
    assert found.solver == "primal"
    assert found.singular.all()
    assert np.isinf(found.condition).all()
    for z in range(problem.n_tests):
        least = np.linalg.lstsq(dense_design(problem, z), problem.target[:, z])[0]
        np.testing.assert_allclose(found.coefficients[..., z].ravel(), least, atol=1e-6)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_degrees_of_freedom_and_condition_are_near_the_exact_ones(rng, solver, pooled):
    problem = make_problem(rng, n=40, rows=300, tests=12, pooled=pooled)
    found = ridge.solve_ridge(problem, 3.0, solver, CPU)
    freedom, condition = [], []
    for z in range(problem.n_tests):
        gram = dense_design(problem, z).T @ dense_design(problem, z)
        freedom.append(np.trace(np.linalg.solve(gram + 3.0 * metric(problem), gram)))
        condition.append(np.linalg.cond(gram + 3.0 * metric(problem)))
    assert found.degrees_of_freedom.mean() == pytest.approx(np.mean(freedom), rel=0.05)
    assert (found.condition <= 1.01 * np.array(condition)).all()
    assert (found.condition >= 0.01 * np.array(condition)).all()


def test_the_iterative_solver_reports_where_it_stopped(rng):
    problem = make_problem(rng, n=40, rows=300, tests=5)
    good = ridge.solve_ridge(problem, 1.0, "iterative", CPU)
    assert good.convergence.failed == 0
    assert good.convergence.residual < 1e-10
    bad = ridge.conjugate_gradients.solve_iterative(problem, np.ones(5), max_iterations=2)
    assert bad.convergence.failed == 5
    assert bad.convergence.iterations == 2
    assert bad.convergence.residual > 1e-8


def test_what_does_not_converge_is_factorized_unless_told_otherwise(rng, monkeypatch):
    problem = make_problem(rng)
    monkeypatch.setattr(ridge, "choose_solver", lambda *_: "iterative")
    short = ridge.solve_iterative
    monkeypatch.setattr(ridge, "solve_iterative", lambda *a: short(*a[:3], max_iterations=1))
    assert ridge.solve_ridge(problem, 1.0, device=CPU).solver == "primal"
    assert ridge.solve_ridge(problem, 1.0, "iterative", CPU).solver == "iterative"


def test_a_large_problem_is_not_factorized_and_a_small_one_not_iterated(rng):
    small = make_problem(rng, n=20, rows=9000, tests=50)
    assert ridge.choose_solver(small, np.ones(50)) == "primal"
    few = make_problem(rng, n=2000, rows=50, tests=3)
    assert ridge.choose_solver(few, np.ones(3)) != "primal"
    large = make_problem(rng, n=3000, rows=20000, tests=2)
    assert ridge.choose_solver(large, np.ones(2)) == "iterative"
    assert ridge.choose_solver(large, np.zeros(2)) == "primal"


def test_an_unknown_solver_is_named():
    problem = make_problem(np.random.default_rng(0))
    with pytest.raises(ValueError, match="'primal', 'dual', 'iterative'"):
        ridge.solve_ridge(problem, 1.0, "cholesky", CPU)


@pytest.mark.parametrize("batch", [2, 9])  # pairs, or a dense product where batches are wide
def test_outer_products(rng, batch):
    problem = make_problem(rng, n=12, rows=40, batch=batch)
    weights = rng.random((40, 3))
    found = OuterProducts(problem.counts).weighted(weights)
    counts = problem.counts.toarray()
    for z in range(3):
        np.testing.assert_allclose(found[z], counts.T @ np.diag(weights[:, z]) @ counts, atol=1e-12)


def test_one_test_example_is_not_diagonalised(rng, monkeypatch):
    """A design of its own is no shared one, though its scales have one column."""
    problem, penalties = make_problem(rng, n=20, rows=150, tests=4), np.array([1e-2, 1.0, 1e3])
    together = solve_path(problem, penalties, 1e-9)
    monkeypatch.setattr(path, "_shared_path", None)
    for z in range(problem.n_tests):
        alone = solve_path(problem.tests(slice(z, z + 1)), penalties, 1e-9)
        np.testing.assert_allclose(alone[..., 0], together[..., z], atol=1e-7)


@pytest.fixture
def rng():
    return np.random.default_rng(3)
