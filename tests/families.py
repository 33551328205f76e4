"""Synthetic runs from a known deviation model, for the tests of simulators."""

from __future__ import annotations

import numpy as np

from simfluence.runs import ExampleTable, RunSet

ADAM = {"class": "AdamW", "betas": [0.9, 0.999]}


def naive_memory(batches: np.ndarray, n: int, beta: float, corrected: bool) -> np.ndarray:
    """m̂ [step, train] as the definition says it, entry by entry."""
    counts = np.zeros((len(batches), n))
    for step, batch in enumerate(batches):
        for example in batch:
            counts[step, example] += 1
    result = np.zeros_like(counts)
    for t in range(len(batches)):
        for s in range(t + 1):
            result[t] += (1 - beta) * beta ** (t - s) * counts[s]
        if corrected:
            result[t] /= 1 - beta ** (t + 1)
    return result


def known_runs(
    rng: np.random.Generator,
    *,
    runs: int = 12,
    steps: int = 30,
    n: int = 16,
    tests: int = 5,
    beta: float = 0.9,
    noise: float = 0.0,
    effects: np.ndarray | None = None,
    optimizer: dict | None = ADAM,
    groups: list[str] | None = None,
) -> tuple[RunSet, np.ndarray]:
    """(runs, effects [train, test]): a common drift, plus effects of what the optimizer remembers."""
    import pandas as pd

    effects = 0.03 * rng.normal(size=(n, tests)) if effects is None else effects
    drift = -0.05 * np.exp(-np.arange(steps) / 10)[:, None] * rng.uniform(0.5, 1.5, tests)
    start = rng.uniform(1.5, 2.5, tests)
    batches = rng.integers(0, n, (runs, steps, 3))
    losses = np.empty((runs, steps + 1, tests))
    for run in range(runs):
        change = drift + naive_memory(batches[run], n, beta, True) @ effects
        change += noise * rng.normal(size=change.shape)
        losses[run] = start + np.concatenate([np.zeros((1, tests)), np.cumsum(change, axis=0)])
    frame = pd.DataFrame({"id": [f"e{i}" for i in range(n)], "group": groups or [""] * n})
    return RunSet.from_arrays(batches, losses, train=ExampleTable(frame), optimizer=optimizer), effects


def skill(simulator, train: RunSet, test: RunSet) -> float:
    simulated = simulator.simulate(test.curricula, test.initial_loss)
    mean = train.loss.mean(0)
    return float(1 - np.square(simulated - test.loss).mean() / np.square(mean - test.loss).mean())
