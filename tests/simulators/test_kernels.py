"""The kernel of training dynamics from scores that were taken at several steps."""

from __future__ import annotations

import numpy as np
import pytest
from families import skill
from log_linear import TESTS, TRAIN, log_linear_runs

from simfluence.simulators import DynamicsSimulator
from simfluence.simulators.dynamics.kernels import fit_scores, kernels, matched
from simfluence.simulators.effects.data import TrainingData, as_scores


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def learnt(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scores after some examples were learnt: rows and columns shrink, each by its residual."""
    return rng.uniform(0.02, 1, (TRAIN, 1)) * scores * rng.uniform(0.02, 1, TESTS)


def test_residuals_are_taken_out_where_the_kernel_does_not_change(rng):
    scores = rng.normal(size=(TRAIN, TESTS))
    later = np.stack([scores, learnt(scores, rng), 7 * learnt(scores, rng)])
    np.testing.assert_allclose(matched(later), np.stack([scores] * 3), rtol=1e-3, atol=1e-3)


def test_rows_and_columns_have_the_norms_of_those_of_the_first_step(rng):
    several = rng.normal(size=(3, TRAIN, TESTS)) * rng.uniform(0.1, 3, (3, TRAIN, 1))
    found = matched(several)
    for axis in (1, 2):
        norms = np.sqrt(np.square(found).mean(axis))
        np.testing.assert_allclose(norms, np.stack([norms[0]] * 3), rtol=1e-3)


def test_rows_of_zeros_stay_zeros(rng):
    several = rng.normal(size=(2, TRAIN, TESTS))
    several[1, 3], several[1, :, 2] = 0, 0
    found = matched(several)
    assert np.isfinite(found).all()
    assert not found[1, 3].any()
    assert not found[1, :, 2].any()


def test_the_four_kernels(rng):
    several = rng.normal(size=(3, TRAIN, TESTS))
    first, mean, same, together = kernels(several)
    unit = lambda array: array / np.sqrt(np.square(array).mean())  # noqa: E731
    np.testing.assert_array_equal(first, several[0])
    np.testing.assert_allclose(mean, np.mean([unit(one) for one in several], 0), rtol=1e-12)
    np.testing.assert_allclose(same, np.mean([unit(one) for one in matched(several)], 0), rtol=1e-12)
    np.testing.assert_allclose(together, np.mean([unit(one) for one in (first, mean, same)], 0), rtol=1e-12)
    assert len(kernels(several[:1])) == 1
    np.testing.assert_array_equal(kernels(np.empty((0, TRAIN, TESTS)))[0], np.zeros((TRAIN, TESTS)))


@pytest.mark.parametrize(("place", "least"), [(0, 0.9), (1, 0.6), (2, 0.9)])
def test_the_kernel_that_explains_the_runs_is_taken(rng, place, least):
    """The true scores come first, among the later ones, or times what was left to learn."""
    runs, train, test = log_linear_runs(rng, 8)
    true, useless = train @ test.T, rng.normal(size=(TRAIN, TESTS))
    several = [[true, useless, useless], [useless, true, true], [true, learnt(true, rng), learnt(true, rng)]]
    data = TrainingData(runs[:6], as_scores(several[place], true.shape), 4000)
    kernel = fit_scores(data.given_scores, data)[1]
    assert np.corrcoef(kernel.ravel(), true.ravel())[0, 1] > 0.85
    assert skill(DynamicsSimulator(several[place]).fit(runs[:6]), runs[:6], runs[6:]) > least
