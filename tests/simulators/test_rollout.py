"""The compiled rollout against a naive loop over runs and steps."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simfluence import Curriculum
from simfluence.kernels.compile import compiled
from simfluence.kernels.threads import in_threads, slices
from simfluence.simulators.markov.rollout import simulate_linear

N = 7


def naive(batches, initial, slope, intercept, batch_size):
    losses = [initial]
    for batch in batches:
        weight = batch_size / len(batch)
        alpha = 1 + weight * sum(slope[i] for i in batch)
        losses.append(alpha * losses[-1] + weight * sum(intercept[i] for i in batch))
    return np.array(losses)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    runs=st.integers(1, 6),
    tests=st.sampled_from([1, 5, 16, 17, 40]),
    widest=st.integers(1, 13),
    parts=st.sampled_from(["both", "slope", "intercept"]),
    batch_size=st.sampled_from([1.0, 3.0]),
    threads=st.integers(1, 3),
)
def test_any_curricula(seed, runs, tests, widest, parts, batch_size, threads):
    """Ragged batches with repetitions, runs of different lengths, few and many columns."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, runs)
    batches = [[rng.integers(0, N, rng.integers(1, widest + 1)) for _ in range(n)] for n in lengths]
    slope, intercept = rng.normal(0, 0.1, (N, tests)), rng.normal(0, 0.1, (N, tests))
    slope *= parts != "intercept"
    intercept *= parts != "slope"
    initial = rng.uniform(1, 2, (runs, tests))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = simulate_linear(
            [Curriculum.from_batches(b, N) for b in batches],
            initial,
            None if parts == "intercept" else slope,
            None if parts == "slope" else intercept,
            batch_size,
        )
    finally:
        torch.set_num_threads(before)
    for r, n in enumerate(lengths):
        expected = naive(batches[r], initial[r], slope, intercept, batch_size)
        np.testing.assert_allclose(found[r, : n + 1], expected, rtol=1e-11, atol=1e-13)
        assert (found[r, n:] == found[r, n]).all()


def test_what_leaves_the_floats_is_inf_and_what_is_unknown_stays_so():
    curriculum = Curriculum.from_batches([[0]] * 2000, 1)
    initial = np.array([[1.0, -1.0, np.nan]])
    found = simulate_linear([curriculum], initial, np.ones((1, 3)), np.zeros((1, 3)), 1.0)
    assert found[0, -1, 0] == np.inf
    assert found[0, -1, 1] == -np.inf
    assert np.isnan(found[0, :, 2]).all()


def test_losses_are_written_where_asked():
    rng = np.random.default_rng(0)
    curricula = [Curriculum.from_batches(rng.integers(0, N, (5, 2)), N) for _ in range(3)]
    arguments = curricula, np.ones((3, 4)), rng.normal(0, 0.1, (N, 4)), None, 2.0
    out = np.empty((3, 6, 4))
    assert simulate_linear(*arguments, out=out) is out
    np.testing.assert_array_equal(out, simulate_linear(*arguments))


def test_a_function_that_cannot_be_kept_on_disk_is_compiled_all_the_same():
    there: dict = {}
    exec("def double(x):\n    return 2 * x", there)  # no file, hence no place beside it
    assert compiled(there["double"])(21) == 42


def test_importing_simfluence_does_not_load_numba():
    said = "import simfluence.cli, sys; print('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", said], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("threads", [1, 2])
def test_work_in_threads_comes_back_in_order(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert list(in_threads(lambda part: part.stop, slices(10, 4))) == [4, 8, 10]
    finally:
        torch.set_num_threads(before)


def test_pieces():
    assert slices(0, 3) == []
    assert slices(5, 0) == [slice(k, k + 1) for k in range(5)]
