"""Factorizations on a GPU, where there is one, against the CPU's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import synthetic_runs
from regressions import make_problem

from simfluence import AdditiveSimulator, LinearSimulator, ridge

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("rows", [40, 200])  # dual and primal
@pytest.mark.parametrize("free", [0, 1])
@pytest.mark.parametrize("shared", [False, True])
def test_factorizations_give_the_same(rows, free, shared):
    rng = np.random.default_rng(3)
    problem = make_problem(rng, n=30, rows=rows, blocks=1 if shared else 2, free=free, shared=shared)
    penalties = [1e-2, 1.0, 1e3]
    a, b = (ridge.solve_ridge(problem, penalties, torch.device(d), "cholesky") for d in ("cpu", "cuda"))
    np.testing.assert_allclose(a.coefficients, b.coefficients, atol=1e-8)
    np.testing.assert_array_equal(a.singular, b.singular)


@pytest.mark.parametrize("simulator", [LinearSimulator, AdditiveSimulator])
@pytest.mark.parametrize("center", ["zero", "pooled"])
def test_whole_fits_choose_the_same_penalty(simulator, center):
    runs, *_ = synthetic_runs(n_runs=6, n_train=20, n_test=5, steps=40, noise=0.02)
    here, there = (simulator(device=d, center=center).fit(runs) for d in ("cpu", "cuda"))
    assert here.penalty_ == there.penalty_
    np.testing.assert_allclose(here.A_, there.A_, atol=1e-8)
    np.testing.assert_allclose(here.B_, there.B_, atol=1e-8)
