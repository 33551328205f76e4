"""Made-up ridge problems, for the tests of their solvers."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from simfluence import ridge


def make_problem(rng, n=12, rows=60, tests=3, *, blocks=2, batch=3, free=0, missing=0.0, shared=False):
    """Positive scales, as losses are; ragged batches with repetitions, which are stored as such.

    With ``free`` one more example occurs in a row as often as all others together.
    """
    sizes = rng.integers(0 if batch > 1 else 1, batch + 2, rows)
    indices, data = rng.integers(0, n, sizes.sum()), rng.uniform(0.5, 2, sizes.sum())
    counts = sparse.csr_array((data, indices, np.concatenate([[0], np.cumsum(sizes)])), shape=(rows, n))
    if free:
        counts = sparse.hstack([counts, sparse.csr_array(np.asarray(counts.sum(axis=1))[:, None])]).tocsr()
    width = 1 if shared else tests
    known = rng.random((rows, width)) >= missing
    scales = [known * rng.uniform(0.5, 3, (rows, width)) for _ in range(blocks - 1)] + [known * 1.0]
    return ridge.RidgeProblem(counts, scales, known * rng.normal(size=(rows, tests)), free)


def dense_design(problem, z):
    """X of a test example."""
    scales = [np.broadcast_to(scale, problem.target.shape)[:, [z]] for scale in problem.scales]
    return np.hstack([scale * problem.counts.toarray() for scale in scales])


def dense_solution(problem, penalty):
    """[block, n, test], one test example at a time."""
    weights = np.ones((problem.blocks, problem.n))
    weights[:, problem.n - problem.free :] = 0
    found = []
    for z in range(problem.n_tests):
        x = dense_design(problem, z)
        found.append(
            np.linalg.solve(x.T @ x + penalty * np.diag(weights.ravel()), x.T @ problem.target[:, z])
        )
    return np.stack(found, axis=-1).reshape(problem.blocks, problem.n, -1)
