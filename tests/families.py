"""Synthetic runs from known models of training, for the tests.

    L_t = L_{t-1} + Σ_i x_{t,i} (A'_i L_{t-1} + B_i) + drift_t + noise

x are counts, or what an optimizer with momentum makes of them; A' = 0 in the effects model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.runs import ExampleTable, Run, RunSet

ADAM = {"class": "AdamW", "betas": [0.9, 0.999]}


def counts_of(batches: Iterable[npt.ArrayLike], n: int) -> np.ndarray:
    """How often each example occurs in each batch, [step, train]."""
    return np.stack([np.bincount(batch, minlength=n) for batch in batches]).astype(np.float64)


def naive_momentum(values: np.ndarray, beta: float, bias_correction: bool) -> np.ndarray:
    """m̂ of a series [step, column] as the definition says it, entry by entry."""
    result = np.zeros_like(values)
    for t in range(len(values)):
        for s in range(t + 1):
            result[t] += (1 - beta) * beta ** (t - s) * values[s]
        if bias_correction:
            result[t] /= 1 - beta ** (t + 1)
    return result


def train(
    batches: np.ndarray,
    start: np.ndarray,
    effects: np.ndarray,
    *,
    slope: np.ndarray | float = 0.0,
    drift: np.ndarray | float = 0.0,
    beta: float = 0.0,
) -> np.ndarray:
    """Losses [step + 1, test] of one run; B and A' [train, test], drift (and noise) [step, test]."""
    actions = naive_momentum(counts_of(batches, len(effects)), beta, True)
    drift = np.broadcast_to(drift, (len(batches), len(start)))
    losses = [start]
    for action, change in zip(actions, drift, strict=True):
        losses.append(losses[-1] + action @ (slope * losses[-1] + effects) + change)
    return np.stack(losses)


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
    """Runs of a linear simulator, starting anywhere; (runs, A, B [train, test]), noise on losses."""
    rng = np.random.default_rng(seed)
    slope = 1 / batch + rng.normal(0, 0.02, (n_train, n_test)) - 0.01
    intercept = rng.normal(0, 0.03, (n_train, n_test))
    batches = np.stack(
        [[rng.choice(n_train, batch, replace=False) for _ in range(steps)] for _ in range(n_runs)]
    )
    start = rng.uniform(1, 3, (n_runs, n_test))
    losses = np.stack(
        [train(batches[run], start[run], intercept, slope=slope - 1 / batch) for run in range(n_runs)]
    )
    losses[:, 1:] += rng.normal(0, noise, losses[:, 1:].shape) if noise else 0
    runs = RunSet.from_arrays(batches, losses, train=n_train)
    runs = replaced(runs, initial_weights="said to be the same")  # so that no note says otherwise
    return runs, slope, intercept


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
    """(runs, effects [train, test]): a common drift, plus effects of what the optimizer took in."""
    import pandas as pd

    effects = 0.03 * rng.normal(size=(n, tests)) if effects is None else effects
    drift = -0.05 * np.exp(-np.arange(steps) / 10)[:, None] * rng.uniform(0.5, 1.5, tests)
    start = rng.uniform(1.5, 2.5, tests)
    batches = rng.integers(0, n, (runs, steps, 3))
    losses = np.stack(
        [
            train(run, start, effects, drift=drift + noise * rng.normal(size=drift.shape), beta=beta)
            for run in batches
        ]
    )
    frame = pd.DataFrame({"id": [f"e{i}" for i in range(n)], "group": groups or [""] * n})
    return RunSet.from_arrays(batches, losses, train=ExampleTable(frame), optimizer=optimizer), effects


def cut(run: Run, steps: int, every: int = 1) -> Run:
    """The first steps of a run, evaluated every few steps."""
    evaluated = np.arange(0, steps + 1, every)
    return dataclasses.replace(
        run,
        curriculum=Curriculum.from_batches(list(run.curriculum)[:steps], run.curriculum.n_examples),
        metrics={"loss": run.loss[evaluated]},
        evaluated=evaluated,
        learning_rate=run.learning_rate[:steps],
        train_loss=run.train_loss[:steps],
    )


def replaced(runs: RunSet, **changes: Any) -> RunSet:
    """The same runs with other fields."""
    return RunSet([dataclasses.replace(run, **changes) for run in runs], runs.train, runs.test)


def with_losses(runs: RunSet, losses: Iterable[np.ndarray]) -> RunSet:
    """The same runs with other losses, one array [step + 1, test] a run."""
    changed = [dataclasses.replace(run, metrics={"loss": own}) for run, own in zip(runs, losses, strict=True)]
    return RunSet(changed, runs.train, runs.test)


def skill(simulator, fitted: RunSet, test: RunSet) -> float:
    simulated = simulator.simulate(test.curricula, test.initial_loss)
    mean = fitted.loss.mean(0)
    return float(1 - np.square(simulated - test.loss).mean() / np.square(mean - test.loss).mean())
