"""Sixteen numbers at once, and the products of conjugate gradients, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from regressions import dense_design, make_problem

from simfluence.kernels import conjugate_gradients as kernels
from simfluence.kernels.threads import SIMD_WIDTH
from simfluence.ridge.iterative import _Systems


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("free", [0, 1])
def test_products_and_their_curvature(kind, dual, blocks, free):
    if dual and free:
        pytest.skip("not solved so")
    rng = np.random.default_rng(0)
    problem = make_problem(rng, n=9, rows=14, tests=5, blocks=blocks, free=free, missing=0.2)
    matrix = (problem.counts @ problem.counts.T).tocsr() if dual else problem.counts
    systems = _Systems(problem, matrix, dual)
    vectors = rng.normal(size=(14 if dual else problem.columns, SIMD_WIDTH)).astype(kind)
    out = np.empty(vectors.size, kind)
    system = systems._systems[np.dtype(kind)]
    curvature, penalised = kernels.apply(out, vectors.ravel(), system, 0.7), system[-1]
    weights = 0.7 * (np.arange(len(vectors)) < penalised // SIMD_WIDTH)
    for z in range(5):
        x = dense_design(problem, z)
        x = x if dual else x.reshape(14, blocks, -1).swapaxes(1, 2).reshape(14, -1)  # [example, block]
        matrix = (x @ x.T if dual else x.T @ x) + np.diag(weights)
        expected = matrix @ vectors[:, z]
        close = {"rtol": 0, "atol": (3e-6 if kind == np.float32 else 1e-13) * (1 + np.square(x).sum())}
        np.testing.assert_allclose(out.reshape(vectors.shape)[:, z], expected, **close)
        assert curvature[z] == pytest.approx(
            vectors[:, z] @ expected, rel=1e-3 if kind == np.float32 else 1e-9
        )
        side = problem.target[:, z] if dual else x.T @ problem.target[:, z]
        np.testing.assert_allclose(systems._side.reshape(vectors.shape)[:, z], side, atol=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_simd_values_do_what_slices_do(kind):
    import numba

    from simfluence.kernels import simd

    load, store, spread, double, bounded = simd.load, simd.store, simd.spread, simd.double, simd.bounded

    @numba.njit
    def mixed(out, sizes, a, b, number):
        x, y = load(a, 1), load(b, 3)
        x += y
        store(out, 2, spread(number) * x - y)
        store(sizes, 0, double(bounded(load(b, 0), spread(-number), spread(number))))

    rng = np.random.default_rng(0)
    a, b, out = rng.normal(size=20).astype(kind), rng.normal(size=20).astype(kind), np.zeros(20, kind)
    b[3] = np.nan
    sizes = np.empty(SIMD_WIDTH)
    mixed(out, sizes, a, b, kind(0.5))
    expected = kind(0.5) * (a[1:17] + b[3:19]) - b[3:19]
    np.testing.assert_allclose(out[2:18], expected, rtol=1e-6)
    assert (out[[0, 1, 18, 19]] == 0).all()
    np.testing.assert_array_equal(sizes, np.clip(b[:16].astype(np.float64), -0.5, 0.5))
    zeros = simd.aligned_zeros(37, a)
    assert (zeros.dtype, zeros.shape, zeros.ctypes.data % 64) == (kind, (37,), 0)
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
