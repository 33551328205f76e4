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
