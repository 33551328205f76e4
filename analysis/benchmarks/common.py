"""What the benchmarks share: made-up runs, alternating timings, and tables with their environment."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import sklearn
import torch

from simfluence import RunSet

FOLDER = Path(__file__).parent


def made_up_runs(n: int, tests: int, runs: int, steps: int, batch: int = 4, seed: int = 0) -> RunSet:
    """Runs of shuffled epochs: every example pulls losses towards its own level, with noise."""
    rng = np.random.default_rng(seed)
    pull, level = rng.uniform(0.0005, 0.004, (n, tests)), rng.uniform(0.2, 1.5, (n, tests))
    batches = np.stack([_epochs(rng, n, steps * batch).reshape(steps, batch) for _ in range(runs)])
    losses = np.empty((runs, steps + 1, tests))
    losses[:, 0] = rng.uniform(1.5, 3, (runs, tests))
    for step in range(steps):
        chosen = batches[:, step]
        change = pull[chosen].sum(1) * losses[:, step] - (pull * level)[chosen].sum(1)
        losses[:, step + 1] = losses[:, step] - change + 0.01 * rng.normal(size=change.shape)
    return RunSet.from_arrays(batches, losses, train=n)


def trained_runs(
    n: int, tests: int, runs: int, steps: int, batch: int, seed: int = 0
) -> tuple[RunSet, np.ndarray]:
    """(runs, scores [train, test]) of a logistic model in 20 features, trained by SGD with momentum .9.

    Examples are of ten kinds, of which every run draws seven. The scores are inner products of features,
    which is the kernel.
    """
    rng = np.random.default_rng(seed)
    kinds, kind = rng.normal(size=(10, 20)), rng.integers(0, 10, n)
    train = kinds[kind] + 0.3 * rng.normal(size=(n, 20))
    test = kinds[rng.integers(0, 10, tests)] + 0.3 * rng.normal(size=(tests, 20))
    batches, losses = [], []
    for _ in range(runs):
        pool = np.flatnonzero(np.isin(kind, rng.choice(10, 7, replace=False)))
        ids = pool[_epochs(rng, len(pool), steps * batch)].reshape(steps, batch)
        w, moment = np.zeros(20), np.zeros(20)
        found = [np.logaddexp(0, -test @ w)]
        for chosen in ids:
            odds = train[chosen] @ w
            gradient = (train[chosen] / (1 + np.exp(odds))[:, None]).mean(0)
            moment = 0.9 * moment + 0.1 * gradient
            w = w + 10.0 / steps * moment
            found.append(np.logaddexp(0, -test @ w) + 0.002 * rng.normal(size=tests))
        batches.append(ids)
        losses.append(np.maximum(found, 1e-3))
    optimizer = {"class": "SGD", "momentum": 0.9}
    return RunSet.from_arrays(batches, losses, train=n, optimizer=optimizer), train @ test.T


def _epochs(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    return np.concatenate([rng.permutation(n) for _ in range(-(-length // n))])[:length]


def side_by_side(*tasks: Callable[[], object], repeats: int = 3) -> list[tuple[float, float]]:
    """Median (wall, CPU) seconds of each, run in turn; one repetition before is not counted."""
    taken: list[list[tuple[float, float]]] = [[] for _ in tasks]
    for repeat in range(repeats + 1):
        for times, task in zip(taken, tasks, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            if repeat or repeats == 0:
                times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [(statistics.median(w for w, _ in t), statistics.median(c for _, c in t)) for t in taken]


def environment() -> dict[str, str]:
    return {
        "processor": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": f"torch {torch.get_num_threads()}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}",
        "load when started": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "versions": f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__},"
        f" torch {torch.__version__}, scikit-learn {sklearn.__version__}",
    }


def write(name: str, sections: dict[str, pd.DataFrame], notes: list[str], started: dict[str, str]) -> None:
    """NAME.csv (the first section) and NAME.md (all of them) beside this file."""
    next(iter(sections.values())).to_csv(FOLDER / f"{name}.csv", index=False)
    lines = [f"Made by `python analysis/benchmarks/{name}.py{''.join(' ' + a for a in sys.argv[1:])}`.", ""]
    lines += [f"- {key}: {value}" for key, value in started.items()]
    for title, frame in sections.items():
        lines += ["", f"## {title}", "", frame.to_markdown(index=False, floatfmt=".4g")]
    lines += ["", *(f"- {note}" for note in notes)]
    (FOLDER / f"{name}.md").write_text("\n".join(lines) + "\n")
