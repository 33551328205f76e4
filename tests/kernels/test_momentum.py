"""What an optimizer with momentum takes in: the compiled loops against the definition."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from families import counts_of, naive_momentum
from hypothesis import given, settings
from hypothesis import strategies as st

from simfluence import Curriculum, RunSet
from simfluence.kernels.momentum import average, summed_counts
from simfluence.simulators.effects.momentum import USUAL, Momentum, optimizer_momentum, recorded_momentum

N = 5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 12),
    beta=st.sampled_from([0.0, 0.7, 0.9]),
    bias_correction=st.booleans(),
)
def test_sums_over_intervals_are_the_definition(seed, steps, beta, bias_correction):
    """Ragged batches with repetitions, weighted uses, changing rates, intervals of any length."""
    rng = np.random.default_rng(seed)
    batches = [rng.integers(0, N, rng.integers(1, 5)) for _ in range(steps)]
    curriculum = Curriculum.from_batches(batches, N)
    weights, rates = rng.uniform(0.5, 2, len(curriculum.examples)), rng.uniform(0, 2, steps)
    grid = np.unique(np.append(rng.integers(0, steps, 3), [0, steps]))
    consumed = np.zeros((steps, N))
    use = 0
    for step, batch in enumerate(batches):
        for example in batch:
            consumed[step, example] += weights[use]
            use += 1
    acting = rates[:, None] * naive_momentum(consumed, beta, bias_correction)
    expected = [acting[a:b].sum(0) for a, b in pairwise(grid)]
    found = summed_counts(
        curriculum.examples, curriculum.offsets, weights, beta, bias_correction, rates, grid, N
    )
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_a_grid_may_end_before_the_curriculum():
    batches = [[0], [1, 2], [3, 3], [4]]
    curriculum, ones = Curriculum.from_batches(batches, N), np.ones(6)
    found = summed_counts(
        curriculum.examples, curriculum.offsets, ones, 0.9, True, np.ones(4), np.array([0, 1, 3]), N
    )
    acting = naive_momentum(counts_of(batches, N), 0.9, True)
    np.testing.assert_allclose(found, [acting[0], acting[1] + acting[2]], atol=1e-14)


def test_with_bias_correction_every_step_weighs_like_a_batch():
    curriculum = Curriculum.from_batches([[0], [1], [3], [3]], N)
    found = summed_counts(
        curriculum.examples, curriculum.offsets, np.ones(4), 0.8, True, np.ones(4), np.arange(5), N
    )
    np.testing.assert_allclose(found.sum(1), 1.0)


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.6, 0.95])
def test_the_average_of_a_series_is_the_definition(beta, bias_correction):
    values = np.random.default_rng(0).normal(size=(15, 4))
    expected = naive_momentum(values, beta, bias_correction)
    average(values, beta, bias_correction)
    np.testing.assert_allclose(values, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [
        ({"class": "AdamW", "betas": [0.8, 0.999]}, Momentum(0.8, True)),
        ({"class": "torch.optim.Adam", "betas": (0.9, 0.99)}, Momentum(0.9, True)),
        ({"class": "SGD", "momentum": 0.95}, Momentum(0.95, False)),
        ({"class": "SGD"}, Momentum(0.0, False)),
        ({"class": "AdamW", "betas": [[0.8, 0.99], [0.8, 0.999]]}, Momentum(0.8, True)),
        ({"class": "AdamW", "betas": [[0.8, 0.99], [0.7, 0.99]]}, None),
        ({}, None),
        ({"class": "Mystery", "betas": [0.5, 0.5]}, None),
    ],
)
def test_momentum_follows_from_the_recorded_optimizer(optimizer, momentum):
    assert optimizer_momentum(optimizer) == momentum


def test_runs_with_different_optimizers_share_no_momentum(runs):
    adam, sgd = {"class": "Adam", "betas": [0.9, 0.999]}, {"class": "SGD", "momentum": 0.5}
    same = RunSet([dataclasses.replace(run, optimizer=adam) for run in runs], runs.train, runs.test)
    assert recorded_momentum(same) == USUAL
    mixed = RunSet([same[0], dataclasses.replace(runs[1], optimizer=sgd)], runs.train, runs.test)
    assert recorded_momentum(mixed) is None
    with pytest.raises(ValueError, match="0 ≤ β < 1"):
        Momentum(1.0, True)
