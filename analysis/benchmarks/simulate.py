"""Simulating many curricula against a plain numpy loop over curricula and steps, and what limits it."""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from common import environment, side_by_side, write

from simfluence import Curriculum
from simfluence.simulators.markov.rollout import simulate_linear

N, STEPS, TESTS, BATCH = 200, 96, 64, 4


def plain_loop(
    batches: list[np.ndarray],
    initial: np.ndarray,
    slope: np.ndarray,
    intercept: np.ndarray,
    out: np.ndarray | None = None,
) -> np.ndarray:
    losses = np.empty((len(batches), STEPS + 1, TESTS)) if out is None else out
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

    tables = slope - 1 / BATCH, intercept

    def ours(out: np.ndarray | None = None) -> np.ndarray:
        return simulate_linear(curricula, initial, *tables, batch_size=BATCH, out=out)

    np.testing.assert_allclose(
        ours()[:500], plain_loop(batches[:500], initial, slope, intercept), rtol=1e-10, atol=1e-12
    )
    result = np.empty((count, STEPS + 1, TESTS))
    mine, theirs, mine_again, theirs_again, added = side_by_side(
        ours,
        lambda: plain_loop(batches, initial, slope, intercept),
        lambda: ours(result),
        lambda: plain_loop(batches, initial, slope, intercept, result),
        lambda: np.add(result, 1.0, out=result),
        repeats=options.repeats,
    )
    rows = []
    for kind, a, b in (("fresh memory", mine, theirs), ("memory at hand", mine_again, theirs_again)):
        rows.append(
            {
                "case": f"{count} curricula × {STEPS} steps × {TESTS} tests, batch {BATCH}; result in {kind}",
                "against": "a plain numpy loop over curricula and steps",
                "ours s": a[0],
                "theirs s": b[0],
                "ratio": b[0] / a[0],
                "CPU ratio": b[1] / a[1],
                "at least": 50,
                "GB/s written": result.nbytes / a[0] / 1e9,
                # what has to cross the memory bus: the result, once; the tables stay in cache
                "share of bandwidth": result.nbytes / a[0] / (2 * result.nbytes / added[0]),
            }
        )
        print(rows[-1])
    notes = [
        f"The memory's bandwidth: numpy adding 1 in place to an array of the result's size,"
        f" {2 * result.nbytes / added[0] / 1e9:.1f} GB/s read and written.",
        "Besides the result, four gathered rows of A and of B are read from cache for every row written.",
        "Fresh memory: each makes an array for its result, which the system has to provide first; on a"
        " virtual machine whose host takes back what is freed that can be most of the time, and it varies.",
        "Memory at hand: both write to the same array (out=).",
    ]
    write("simulate", {"Ratios": pd.DataFrame(rows)}, notes, started)


if __name__ == "__main__":
    main()
