"""Runs of a model that training dynamics are exact for: log-odds linear in weights that torch trains."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from simfluence import RunSet

TRAIN, TESTS, WIDTH, STEPS, RATE, MOMENTUM = 24, 6, 5, 40, 0.2, 0.8


def trained(
    batches: Iterable[np.ndarray], train: np.ndarray, test: np.ndarray, rate: float = RATE
) -> np.ndarray:
    """Losses −log σ(⟨w, test⟩) [step + 1, test] while torch trains w on −log σ(⟨w, train⟩)."""
    w = torch.zeros(train.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=rate, momentum=MOMENTUM, dampening=MOMENTUM)
    first = torch.zeros(train.shape[1], dtype=torch.float64)
    losses = []
    for batch in [*batches, None]:
        losses.append(-torch.nn.functional.logsigmoid(torch.from_numpy(test) @ w).detach().numpy())
        if batch is None:
            break
        optimizer.zero_grad()
        (-torch.nn.functional.logsigmoid(torch.from_numpy(train[batch]) @ w)).mean().backward()
        if len(losses) == 1:  # torch's buffer begins with the first gradient, ours with none
            optimizer.state[w]["momentum_buffer"] = first
        optimizer.step()
    return np.stack(losses)


def log_linear_runs(rng: np.random.Generator, runs: int) -> tuple[RunSet, np.ndarray, np.ndarray]:
    """(runs, training and test features), with features that have a common direction: progress is shared."""
    common = 0.5 * rng.normal(size=WIDTH)
    train = rng.normal(size=(TRAIN, WIDTH)) + common
    test = rng.normal(size=(TESTS, WIDTH)) + common
    pools = [rng.permutation(TRAIN)[: TRAIN // 3] for _ in range(runs)]  # which differ: so do the runs
    batches = np.stack([rng.choice(pool, (STEPS, 3)) for pool in pools])
    losses = np.stack([trained(run, train, test) for run in batches])
    optimizer = {"class": "SGD", "momentum": MOMENTUM}
    return RunSet.from_arrays(batches, losses, train=TRAIN, optimizer=optimizer), train, test
