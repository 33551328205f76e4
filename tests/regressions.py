"""Made-up ridge problems, for the tests of their solvers."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from simfluence import ridge


def make_problem(rng, n=12, rows=60, tests=3, *, blocks=2, batch=3, free=0, missing=0.0, shared=False):
    """Positive scales, as losses are; batches with repetitions; ``free``: one more example, in all rows."""
    examples = rng.integers(0, n, (rows, batch))
    counts = sparse.coo_array(
        (np.ones(rows * batch), (np.repeat(np.arange(rows), batch), examples.ravel())), shape=(rows, n)
    ).tocsr()
    if free:
        counts = sparse.hstack([counts, sparse.csr_array(np.full((rows, 1), batch))]).tocsr()
    known = rng.random((rows, 1 if shared else tests)) >= missing
    scales = [known * rng.uniform(0.5, 3, known.shape) for _ in range(blocks - 1)] + [known * 1.0]
    return ridge.RidgeProblem(counts, scales, known * rng.normal(size=(rows, tests)), free)


def dense_design(problem, z):
    """X of a test example; its columns are [block, example]."""
    counts = problem.counts.toarray()
    return np.hstack([scale[:, [z if scale.shape[1] > 1 else 0]] * counts for scale in problem.scales])


def metric(problem):
    """P, a diagonal matrix."""
    own = np.ones(problem.n)
    own[problem.n - problem.free :] = 0.0
    return np.diag(np.tile(own, problem.blocks))


def dense_solution(problem, penalty):
    """[block, n, test], one test example at a time."""
    columns = []
    for z in range(problem.n_tests):
        x = dense_design(problem, z)
        columns.append(np.linalg.solve(x.T @ x + penalty * metric(problem), x.T @ problem.target[:, z]))
    return np.stack(columns, axis=-1).reshape(problem.blocks, problem.n, -1)
