"""Sixteen numbers at once in compiled loops: what they do, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from simfluence.kernels.threads import SIMD_WIDTH


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
        store(sizes, 0, double(load(b, 0)))

    rng = np.random.default_rng(0)
    a, b, out = rng.normal(size=20).astype(kind), rng.normal(size=20).astype(kind), np.zeros(20, kind)
    sizes = np.empty(SIMD_WIDTH)
    mixed(out, sizes, a, b, kind(1.5))
    expected = kind(1.5) * (a[1:17] + b[3:19]) - b[3:19]
    np.testing.assert_allclose(out[2:18], expected, rtol=1e-6)
    assert (out[[0, 1, 18, 19]] == 0).all()
    np.testing.assert_array_equal(sizes, b[:16].astype(np.float64))


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
