"""The compiled loops of the iterative solver against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from simfluence import ridge
from simfluence.kernels import conjugate_gradients as kernels
from simfluence.kernels.threads import SIMD_WIDTH, padded_to_fours
from simfluence.ridge import gpu
from simfluence.ridge.columns import Columns, Design, Rows

CPU = torch.device("cpu")


def made(seed, n, rows, tests, blocks, pooled=False, shared=False):
    """Ragged rows, some empty, with repetitions that are stored as such; scales of either sign, or ones."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 7, rows)
    indices, data = rng.integers(0, n, sizes.sum()), rng.uniform(0.5, 2, sizes.sum())
    counts = sparse.csr_array((data, indices, np.concatenate([[0], np.cumsum(sizes)])), shape=(rows, n))
    scales = rng.normal(size=(blocks, rows, 1 if shared else tests))
    scales[rng.random(blocks) < 0.4] = 1.0
    return ridge.RidgeProblem(counts, scales, rng.normal(size=(rows, tests)), pooled)


def dense(problem, z):
    """X of a test example, columns ordered as the kernels' vectors: [example, block]."""
    counts = problem.counts.toarray()
    scales = np.broadcast_to(problem.scales, (problem.blocks, *problem.target.shape))
    parts = np.stack([scale[:, z, None] * counts for scale in scales], axis=-1)
    return parts.reshape(len(counts), -1)


def metric(problem):
    n, k = problem.n, problem.blocks
    return np.kron(np.eye(n) - (1.0 / n if problem.pooled else 0.0), np.eye(k))


problems = st.builds(
    made,
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    rows=st.integers(1, 30),
    tests=st.sampled_from([1, 2, 5, 15, 16]),
    blocks=st.integers(1, 3),
    pooled=st.booleans(),
    shared=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(problem=problems, single=st.booleans())
def test_products_and_statistics(problem, single):
    found = Columns(Rows(problem, Design(problem)))
    bounds = found.norm_bound()
    rng = np.random.default_rng(0)
    kind = np.dtype(np.float32 if single else np.float64)
    rows = found._rows[kind]
    vectors = rng.normal(size=(problem.columns, SIMD_WIDTH)).astype(kind)
    penalty = rng.uniform(0, 2, SIMD_WIDTH).astype(kind)
    out, curvature = np.empty(vectors.size, kind), np.empty(SIMD_WIDTH)
    kernels.apply(out, curvature, vectors.ravel(), rows, penalty, problem.pooled)
    for z in range(problem.n_tests):
        x = dense(problem, z)
        expected = x.T @ (x @ vectors[:, z]) + penalty[z] * metric(problem) @ vectors[:, z]
        close = {"rtol": 0, "atol": (3e-6 if single else 1e-13) * (1 + np.square(x).sum())}
        np.testing.assert_allclose(out.reshape(vectors.shape)[:, z], expected, **close)
        assert curvature[z] == pytest.approx(vectors[:, z] @ expected, rel=1e-3 if single else 1e-9, abs=1e-6)
        moment = found.moment.reshape(vectors.shape)[:, z]
        np.testing.assert_allclose(moment, x.T @ problem.target[:, z], atol=1e-11)
        bound = (np.abs(x).T @ np.abs(x).sum(axis=1)).max()
        assert bound == pytest.approx(bounds[z])


@settings(max_examples=60, deadline=None)
@given(problem=problems, penalty=st.floats(0.1, 1e3))
def test_solutions(problem, penalty):
    found = Columns(Rows(problem, Design(problem)))
    weights = np.full(problem.n_tests, penalty)
    if problem.pooled:  # averages are not penalised: they need rows
        systems = [dense(problem, z).T @ dense(problem, z) for z in range(problem.n_tests)]
        if max(np.linalg.cond(g + penalty * metric(problem)) for g in systems) > 1e6:
            return
    theta, _, converged, residual = found.solve(weights, 1e-12, 400, found.preconditioner(weights))
    assert converged.all()
    split = theta.reshape(problem.columns, SIMD_WIDTH)
    assert (split[:, problem.n_tests :] == 0).all()
    split = split[:, : problem.n_tests]
    for z in range(problem.n_tests):
        x = dense(problem, z)
        system = x.T @ x + penalty * metric(problem)
        np.testing.assert_allclose(
            split[:, z], np.linalg.solve(system, x.T @ problem.target[:, z]), atol=1e-8
        )
        left = x.T @ problem.target[:, z] - system @ split[:, z]
        np.testing.assert_allclose(residual.reshape(problem.columns, SIMD_WIDTH)[:, z], left, atol=1e-10)
    np.testing.assert_array_equal(
        found.unflat(theta), split.reshape(problem.n, -1, problem.n_tests).swapaxes(0, 1)
    )


def test_nothing_to_explain_is_zero_at_once():
    problem = made(0, 5, 20, 3, 2)
    target = problem.target.copy()
    target[:, 1] = 0
    found = ridge.solve_ridge(
        ridge.RidgeProblem(problem.counts, problem.scales, target), 1.0, "iterative", CPU
    )
    assert (found.coefficients[..., 1] == 0).all()
    assert found.convergence.failed == 0


def test_losses_of_any_size_are_solved_to_the_same_digits():
    """Single precision sees neither 1e-30 nor 1e30: corrections are scaled."""
    problem = made(1, 6, 40, 4, 1)
    reference = ridge.solve_ridge(problem, 1.0, "iterative", CPU).coefficients
    for factor in (1e-150, 1e-30, 1e30, 1e150):
        other = ridge.RidgeProblem(problem.counts, problem.scales, factor * problem.target)
        found = ridge.solve_ridge(other, 1.0, "iterative", CPU).coefficients
        np.testing.assert_allclose(found / factor, reference, rtol=1e-9)


@pytest.mark.parametrize("factor", [1e-18, 1.0, 1e16, 1e18])
def test_losses_of_any_size_in_one_test_example(factor):
    """One that diverged, say: the scales grow with the targets."""
    problem = made(3, 30, 400, 4, 2)
    scales, target = np.abs(problem.scales) + 0.5, problem.target.copy()
    scales[0][:, 1] *= factor
    scales[1] = 1.0
    target[:, 1] *= factor
    penalties = np.array([1e-4, 1.0, 1e4])
    other = ridge.RidgeProblem(problem.counts, scales, target)
    found = ridge.solve_path(other, penalties, CPU)
    for penalty, theta in zip(penalties, found, strict=True):
        for z in (0, 1):
            x = dense(other, z)
            size = np.linalg.norm(np.vstack([x, np.sqrt(penalty) * np.eye(x.shape[1])]), axis=0)
            system = np.vstack([x / size, np.diag(np.sqrt(penalty) / size)])
            right = np.concatenate([target[:, z], np.zeros(x.shape[1])])
            true = x @ (np.linalg.lstsq(system, right, rcond=None)[0] / size)
            fitted = x @ theta[..., z].T.ravel()
            assert np.linalg.norm(fitted - true) < 1e-4 * np.linalg.norm(target[:, z])


@pytest.mark.parametrize("penalty", [1e-20, 1e-4, 1e20, 1e30])
def test_penalties_of_any_size(penalty):
    problem = made(4, 12, 60, 3, 2)
    counts = problem.counts.toarray()
    counts[:, 0] = 0  # an example that never occurs
    problem = ridge.RidgeProblem(sparse.csr_array(counts), np.abs(problem.scales) + 0.5, problem.target)
    a, b = (ridge.solve_ridge(problem, penalty, solver, CPU) for solver in ("iterative", "primal"))
    assert a.convergence.iterations < 100
    if penalty >= 1e-4:  # below, the other is singular to rounding
        np.testing.assert_allclose(a.coefficients, b.coefficients, rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(a.degrees_of_freedom, b.degrees_of_freedom, rtol=0.02, atol=1e-6)
    assert (a.condition > (1e15 if penalty < 1e-4 else 0)).all()


def test_what_is_not_solved_is_not_called_solved():
    found = Columns(Rows(problem := made(5, 40, 400, 3, 2), Design(problem)))
    penalties = np.array([1.0, 1e-3, 1e2])  # in no order
    _, few = found.path(penalties, 1e-5, limit=1)
    assert not few.all()
    thetas, done = found.path(penalties, 1e-5, limit=200)
    assert done.all()
    for penalty, theta in zip(penalties, thetas, strict=True):
        exact = ridge.solve_ridge(problem, penalty, "primal", CPU).coefficients
        np.testing.assert_allclose(theta, exact, atol=1e-3)


def test_convergence_is_the_residuals_whatever_the_iterations_say(monkeypatch):
    problem = made(5, 40, 400, 3, 2)
    monkeypatch.setattr(Columns, "iterate", lambda self, *_: (1, np.ones(self.width, bool)))
    assert ridge.solve_ridge(problem, 1.0, "iterative", CPU).convergence.failed == 3

    def idle(systems, moment, *_):
        return torch.zeros_like(moment), torch.ones(moment[:, 0].shape, dtype=torch.bool), 1

    monkeypatch.setattr(ridge.conjugate_gradients, "is_compiled_for", lambda device: False)
    monkeypatch.setattr(gpu, "conjugate_gradients", idle)
    assert ridge.solve_ridge(problem, 1.0, "iterative", CPU).convergence.failed == 3


def test_every_test_example_has_its_own_penalty():
    problem, penalty = made(6, 10, 80, 33, 2), np.geomspace(1e-2, 1e3, 33)
    a, b = (ridge.solve_ridge(problem, penalty, solver, CPU) for solver in ("iterative", "primal"))
    np.testing.assert_allclose(a.coefficients, b.coefficients, atol=1e-8)
    np.testing.assert_allclose(a.degrees_of_freedom, b.degrees_of_freedom, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_the_test_examples(threads):
    problem = made(2, 8, 60, 30, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ridge.solve_ridge(problem, 1.0, "iterative", CPU).coefficients
    finally:
        torch.set_num_threads(before)
    for z in (0, 20, 29):
        alone = ridge.solve_ridge(problem.tests(slice(z, z + 1)), 1.0, "iterative", CPU).coefficients
        np.testing.assert_allclose(found[..., z], alone[..., 0], atol=1e-9)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_simd_does_what_slices_do(kind):
    import numba

    from simfluence.kernels import simd

    load, store, spread, double = simd.load, simd.store, simd.spread, simd.double

    @numba.njit
    def mixed(out, sizes, a, b, number):
        x, y = load(a, 1), load(b, 3)
        x += y
        store(out, 2, spread(number) * x - y)
        store(sizes, 0, double(simd.absolute(load(b, 0))))

    rng = np.random.default_rng(0)
    a, b, out = rng.normal(size=20).astype(kind), rng.normal(size=20).astype(kind), np.zeros(20, kind)
    sizes = np.empty(SIMD_WIDTH)
    mixed(out, sizes, a, b, kind(1.5))
    expected = kind(1.5) * (a[1:17] + b[3:19]) - b[3:19]
    np.testing.assert_allclose(out[2:18], expected, rtol=1e-6)
    assert (out[[0, 1, 18, 19]] == 0).all()
    np.testing.assert_array_equal(sizes, np.abs(b[:16].astype(np.float64)))
    zeros = simd.aligned_zeros(37, a)
    assert zeros.dtype == kind
    assert zeros.shape == (37,)
    assert zeros.ctypes.data % 64 == 0
    assert not zeros.any()


def test_simd_refuses_what_it_would_read_or_write_wrongly():
    import numba

    from simfluence.kernels.simd import load, spread, store

    @numba.njit
    def copied(out, a):
        store(out, 0, load(a, 0))

    single, double = np.zeros(32, np.float32), np.zeros(32)
    constant = np.zeros(32)
    constant.flags.writeable = False
    for out, a in ((single, double), (double, double[::2]), (double, np.zeros((2, 16))), (constant, double)):
        with pytest.raises(numba.TypingError):
            copied(out, a)
    with pytest.raises(numba.TypingError):
        copied(double, np.zeros(32, np.int64))

    @numba.njit
    def spread_out(out, number):
        store(out, 0, spread(number))

    with pytest.raises(numba.TypingError):
        spread_out(single, 1.0)


def test_rows_in_fours():
    filled, bounds = padded_to_fours(np.arange(6), np.array([1, 0, 5]), -1)
    assert filled.tolist() == [0, -1, -1, -1, 1, 2, 3, 4, 5, -1, -1, -1]
    assert bounds.tolist() == [0, 4, 4, 12]
    whole = np.arange(8)
    assert padded_to_fours(whole, np.array([4, 4]), -1)[0] is whole
