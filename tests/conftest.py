"""What many tests share."""

from __future__ import annotations

import numpy as np
import pytest

from simfluence import RunSet


def synthetic_runs(
    *,
    n_train: int = 12,
    n_test: int = 4,
    n_runs: int = 8,
    steps: int = 30,
    batch: int = 3,
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[RunSet, np.ndarray, np.ndarray]:
    """Runs that a linear simulator made, with its A and B [train, test]."""
    rng = np.random.default_rng(seed)
    slope = 1 / batch + rng.normal(0, 0.02, (n_train, n_test)) - 0.01
    intercept = rng.normal(0, 0.03, (n_train, n_test))
    batches = np.stack(
        [[rng.choice(n_train, batch, replace=False) for _ in range(steps)] for _ in range(n_runs)]
    )
    losses = np.empty((n_runs, steps + 1, n_test))
    losses[:, 0] = rng.uniform(1, 3, (n_runs, n_test))
    for run in range(n_runs):
        for step in range(steps):
            chosen = batches[run, step]
            losses[run, step + 1] = slope[chosen].sum(0) * losses[run, step] + intercept[chosen].sum(0)
    losses[:, 1:] += rng.normal(0, noise, losses[:, 1:].shape) if noise else 0
    return RunSet.from_arrays(batches, losses, train=n_train), slope, intercept


@pytest.fixture
def runs() -> RunSet:
    """Eight synthetic runs of thirty noisy steps: 12 training and 4 test examples."""
    return synthetic_runs(noise=0.01)[0]
