"""Made-up ridge problems, for the tests of their solvers."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from simfluence import ridge


def make_problem(rng, n=12, rows=60, tests=3, *, blocks=2, batch=3, pooled=False, missing=0.0):
    """Positive scales, as losses are; batches with repetitions."""
    examples = rng.integers(0, n, (rows, batch))
    counts = sparse.coo_array(
        (np.ones(rows * batch), (np.repeat(np.arange(rows), batch), examples.ravel())), shape=(rows, n)
    ).tocsr()
    known = rng.random((rows, tests)) >= missing
    scales = np.stack([known * rng.uniform(0.5, 3, (rows, tests)) for _ in range(blocks - 1)] + [known * 1.0])
    return ridge.RidgeProblem(counts, scales, known * rng.normal(size=(rows, tests)), pooled)
