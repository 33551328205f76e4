"""Ridge regression without each run in turn: both ways of solving it, dense formulas, and refits."""

from __future__ import annotations

import numpy as np
import pytest

from simfluence.ridge.leave_run_out import Problem, solve

ROWS, TESTS = 24, 3
RUNS = [slice(0, 8), slice(8, 14), slice(14, 24)]
PENALTY = 0.5


def made(columns: int, own: int, seed: int = 0) -> tuple[Problem, Problem]:
    """One regression, given by its design and by its kernel."""
    rng = np.random.default_rng(seed)
    design, target = rng.normal(size=(ROWS, columns)), rng.normal(size=(ROWS, TESTS))
    means = rng.normal(size=(ROWS, own, TESTS))
    return (
        Problem(design, None, target, means, RUNS),
        Problem(None, design @ design.T, target, means, RUNS),
    )


def dense(
    problem: Problem, z: int, rows: np.ndarray, penalty: float, strength: float, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(θ, c) of test example z on these rows by one joint least squares over both, in plain matrices."""
    design, own, target = problem.design[rows], problem.own[rows][..., z], problem.target[rows, z]
    x = np.hstack([design, own])
    columns, q = design.shape[1], own.shape[1]
    system = x.T @ x / penalty
    system[:columns, :columns] += np.eye(columns)
    system[columns:, columns:] += strength * np.eye(q)
    side = x.T @ target / penalty
    side[columns:] += strength * shared
    return tuple(np.split(np.linalg.solve(system, side), [columns]))


def prior_of_coefficients(problem: Problem, penalty: float, pooling: float) -> tuple[float, np.ndarray]:
    """(τ, c̄) in plain matrices: τ from the mean information on c, c̄ from all test examples together."""
    inverse = np.linalg.inv(problem.design @ problem.design.T + penalty * np.eye(ROWS))
    q = problem.own.shape[1]
    own = [problem.own[..., z] for z in range(TESTS)]
    information = [h.T @ inverse @ h for h in own]
    moments = [h.T @ inverse @ problem.target[:, z] for z, h in enumerate(own)]
    strength = pooling * np.trace(np.mean(information, axis=0)) / q
    return strength, np.linalg.solve(sum(information) + strength * np.eye(q), sum(moments))


@pytest.mark.parametrize("own", [0, 2])
@pytest.mark.parametrize("columns", [5, 40])  # fewer and more than rows
def test_by_columns_is_by_rows(columns, own):
    by_columns, by_rows = (solve(problem, PENALTY) for problem in made(columns, own))
    np.testing.assert_allclose(by_columns.dual, by_rows.dual, atol=1e-9)
    np.testing.assert_allclose(by_columns.coefficients, by_rows.coefficients, atol=1e-9)
    np.testing.assert_allclose(by_columns.left_out, by_rows.left_out, atol=1e-8)


@pytest.mark.parametrize("which", [0, 1], ids=["columns", "rows"])
@pytest.mark.parametrize("pooling", [0.01, 1.0])
@pytest.mark.parametrize("columns", [5, 40])
def test_the_solution_is_that_of_dense_formulas(columns, pooling, which):
    problems = made(columns, 2)
    strength, shared = prior_of_coefficients(problems[0], PENALTY, pooling)
    found = solve(problems[which], PENALTY, pooling=pooling)
    for z in range(TESTS):
        theta, coefficients = dense(problems[0], z, np.arange(ROWS), PENALTY, strength, shared)
        np.testing.assert_allclose(problems[0].design.T @ found.dual[:, z], theta, atol=1e-8)
        np.testing.assert_allclose(found.coefficients[:, z], coefficients, atol=1e-8)
        residual = (
            problems[0].target[:, z] - problems[0].design @ theta - problems[0].own[..., z] @ coefficients
        )
        np.testing.assert_allclose(PENALTY * found.dual[:, z], residual, atol=1e-8)


@pytest.mark.parametrize("which", [0, 1], ids=["columns", "rows"])
@pytest.mark.parametrize("own", [0, 2])
@pytest.mark.parametrize("columns", [5, 40])
def test_left_out_residuals_are_those_of_refits(columns, own, which):
    """With c̄ and τ of all runs, as stated."""
    problems = made(columns, own)
    strength, shared = prior_of_coefficients(problems[0], PENALTY, 0.01) if own else (0.0, np.zeros(0))
    found = solve(problems[which], PENALTY)
    for run in RUNS:
        others = np.delete(np.arange(ROWS), np.r_[run])
        for z in range(TESTS):
            theta, coefficients = dense(problems[0], z, others, PENALTY, strength, shared)
            predicted = problems[0].design[run] @ theta + problems[0].own[run, :, z] @ coefficients
            expected = problems[0].target[run, z] - predicted
            np.testing.assert_allclose(found.left_out[run, z], expected, atol=1e-7)


def test_little_pooling_is_generalised_least_squares():
    """c is then free in every test example, also in the refits."""
    by_columns, problem = made(10, 2)
    found = solve(problem, PENALTY, pooling=1e-9)
    kernel = problem.kernel
    for run in RUNS:
        inside = np.delete(np.arange(ROWS), np.r_[run])
        inverse = np.linalg.inv(kernel[np.ix_(inside, inside)] + PENALTY * np.eye(len(inside)))
        for z in range(TESTS):
            h, y = problem.own[inside, :, z], problem.target[inside, z]
            c = np.linalg.solve(h.T @ inverse @ h, h.T @ inverse @ y)
            predicted = problem.own[run, :, z] @ c + kernel[run][:, inside] @ inverse @ (y - h @ c)
            np.testing.assert_allclose(found.left_out[run, z], problem.target[run, z] - predicted, atol=1e-5)
    assert np.isnan(solve(by_columns, PENALTY, leave_out=False).left_out).all()


def test_a_penalty_too_small_is_refused():
    singular = Problem(None, np.ones((3, 3)), np.ones((3, 1)), np.empty((3, 0, 1)), [slice(0, 3)])
    with pytest.raises(ValueError, match="1e-30 is too small"):
        solve(singular, 1e-30)
