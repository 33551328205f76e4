"""The same code on a GPU, where there is one, against the CPU's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import synthetic_runs
from regressions import make_problem

from simfluence import AdditiveSimulator, LinearSimulator, ridge

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("rows", [20, 80])  # dual and primal
@pytest.mark.parametrize("free", [0, 1])
@pytest.mark.parametrize("shared", [False, True])
def test_factorizing_gives_the_same(rng, rows, free, shared):
    problem = make_problem(rng, n=30, rows=rows, free=free, shared=shared)
    a, b = (ridge.solve_ridge(problem, [0.1, 1.0], device, "cholesky") for device in (CPU, GPU))
    np.testing.assert_allclose(a.coefficients, b.coefficients, atol=1e-9)
    np.testing.assert_array_equal(a.singular, b.singular)


@pytest.mark.parametrize("simulator", [LinearSimulator, AdditiveSimulator])
@pytest.mark.parametrize("center", ["zero", "pooled"])
def test_whole_fits_choose_the_same_penalty(simulator, center):
    runs, *_ = synthetic_runs(n_runs=6, n_train=20, n_test=5, steps=40, noise=0.02)
    here, there = (simulator(device=d, center=center).fit(runs) for d in ("cpu", "cuda"))
    np.testing.assert_array_equal(here.penalty_, there.penalty_)
    np.testing.assert_allclose(here.A_, there.A_, atol=1e-8)
    np.testing.assert_allclose(here.B_, there.B_, atol=1e-8)


@pytest.fixture
def rng():
    return np.random.default_rng(3)
