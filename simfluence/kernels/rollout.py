"""Simulating linear models, compiled: sixteen test examples at a time stay in registers for a whole run."""

from __future__ import annotations

import numpy as np

from simfluence.kernels.compile import compiled
from simfluence.kernels.simd import load, spread, store


@compiled
def roll_out_into(  # type: ignore[no-untyped-def]
    losses, firsts, slope, intercept, examples, bounds, begins, weights
):
    """L_t = (1 + w_t Σ_{i∈c_t} A'_i) L_{t-1} + w_t Σ_{i∈c_t} B_i, 16 columns from each of ``firsts`` on.

    losses : [run, step + 1, column], where step 0 is there; after a run's end its last loss is repeated.
    slope, intercept : A' and B, flat [train, column]; None where there is no such effect.
    examples : the batches of all runs, one after the other; bounds : where each begins, and the end.
    weights : w, one a batch. begins : [run + 1], the number of a run's first batch, and that of batches.
    """
    points, total = losses.shape[1], np.uint64(losses.shape[2])
    flat = losses.reshape(-1)
    for run in range(losses.shape[0]):
        for column in firsts:
            out = np.uint64(run * points) * total + column
            now = load(flat, out)
            for step in range(begins[run], begins[run] + points - 1):
                if step < begins[run + 1]:
                    alpha = beta = spread(0.0)
                    for at in range(bounds[step], bounds[step + 1]):
                        i = np.uint64(examples[at]) * total + column
                        if slope is not None:
                            alpha += load(slope, i)
                        if intercept is not None:
                            beta += load(intercept, i)
                    weight = spread(weights[step])
                    if slope is not None:
                        now = now + weight * alpha * now
                    if intercept is not None:
                        now = now + weight * beta
                out += total
                store(flat, out, now)
