"""The same code on a GPU, where there is one, against the CPU's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import synthetic_runs
from regressions import make_problem

from simfluence import AdditiveSimulator, LinearSimulator, ridge
from simfluence.ridge import path

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_factorizing_gives_the_same(rng, solver, pooled, shared):
    problem = problem_of(rng, pooled, shared)
    a, b = (ridge.solve_ridge(problem, 1.0, solver, device) for device in (CPU, GPU))
    np.testing.assert_allclose(a.coefficients, b.coefficients, atol=1e-9)
    np.testing.assert_allclose(a.degrees_of_freedom, b.degrees_of_freedom, rtol=2e-2)
    np.testing.assert_allclose(a.condition, b.condition, rtol=2e-2)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("widest", [0, 5000])  # iterated, and diagonalised
def test_paths_are_the_same(rng, monkeypatch, pooled, widest):
    monkeypatch.setattr(path, "_SHARED_COLUMNS", widest)
    for shared in (False, True):
        problem = problem_of(rng, pooled, shared)
        rows = [np.arange(problem.counts.shape[0])]
        penalties = np.array([1e-2, 1.0, 1e3])
        a, b = (ridge.Paths(problem, rows, device).solve(0, penalties, 1e-11) for device in (CPU, GPU))
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("simulator", [LinearSimulator, AdditiveSimulator])
@pytest.mark.parametrize("center", ["zero", "pooled"])
@pytest.mark.parametrize("per_test", [False, True])
def test_whole_fits_choose_the_same_penalty(simulator, center, per_test):
    runs, *_ = synthetic_runs(n_runs=6, n_train=20, n_test=5, steps=40, noise=0.02)
    here, there = (simulator(device=d, center=center, per_test=per_test).fit(runs) for d in ("cpu", "cuda"))
    np.testing.assert_array_equal(here.penalty_, there.penalty_)
    np.testing.assert_allclose(here.A_, there.A_, atol=1e-8)
    np.testing.assert_allclose(here.B_, there.B_, atol=1e-8)


def problem_of(rng, pooled, shared):
    problem = make_problem(rng, n=30, rows=80, blocks=1 if shared else 2, pooled=pooled)
    scales = problem.scales[:, :, :1] if shared else problem.scales
    return ridge.RidgeProblem(problem.counts, scales, problem.target, pooled)


@pytest.fixture
def rng():
    return np.random.default_rng(3)
