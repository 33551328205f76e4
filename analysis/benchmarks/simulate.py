"""Simulating many curricula against a plain numpy loop over curricula and steps, and what limits it."""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from common import environment, side_by_side, write

from simfluence import Curriculum
from simfluence.simulators.rollout import simulate_linear

N, STEPS, TESTS, BATCH = 200, 96, 64, 4


def plain_loop(
    batches: list[np.ndarray], initial: np.ndarray, slope: np.ndarray, intercept: np.ndarray
) -> np.ndarray:
    losses = np.empty((len(batches), STEPS + 1, TESTS))
    for run, steps in enumerate(batches):
        loss = losses[run, 0] = initial[run]
        for step, batch in enumerate(steps):
            loss = slope[batch].sum(0) * loss + intercept[batch].sum(0)
            losses[run, step + 1] = loss
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curricula", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started, count = environment(), options.curricula
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, N, (STEPS, BATCH)) for _ in range(count)]
    curricula = [Curriculum.from_batches(steps, N) for steps in batches]
    slope = 1 / BATCH + rng.normal(-1e-3, 1e-3, (N, TESTS))
    intercept, initial = rng.normal(0, 1e-2, (N, TESTS)), rng.uniform(1, 2, (count, TESTS))

    def ours() -> np.ndarray:
        return simulate_linear(curricula, initial, slope - 1 / BATCH, intercept, batch_size=BATCH)

    np.testing.assert_allclose(
        ours()[:500], plain_loop(batches[:500], initial, slope, intercept), rtol=1e-10, atol=1e-12
    )
    result = np.empty((count, STEPS + 1, TESTS))
    mine, theirs, filled = side_by_side(
        ours,
        lambda: plain_loop(batches, initial, slope, intercept),
        lambda: np.add(result, 1.0, out=result),
        repeats=options.repeats,
    )
    # what has to cross the memory bus: the result, once; the tables and a chunk's effects stay in cache
    bandwidth = 2 * result.nbytes / filled[0]
    row = {
        "case": f"{count} curricula × {STEPS} steps × {TESTS} tests, batch {BATCH}",
        "against": "a plain numpy loop over curricula and steps",
        "ours s": mine[0],
        "theirs s": theirs[0],
        "ratio": theirs[0] / mine[0],
        "CPU ratio": theirs[1] / mine[1],
        "at least": 50,
        "GB/s written": result.nbytes / mine[0] / 1e9,
        "GB/s of the memory": bandwidth / 1e9,
        "share of bandwidth": result.nbytes / mine[0] / bandwidth,
    }
    print(row)
    notes = [
        "GB/s of the memory: numpy adding 1 in place to an array of the result's size (read and written).",
        "Besides the result, four gathered rows of A and of B are read from cache for every row written.",
    ]
    write("simulate", {"Ratios": pd.DataFrame([row])}, notes, started)


if __name__ == "__main__":
    main()
