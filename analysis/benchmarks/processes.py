"""Runs recorded per minute: one process with all cores against one process a core.

python analysis/benchmarks/processes.py
"""

from __future__ import annotations

import os
import tempfile
import time

import torch

from simfluence.finetuning.experiment import record_runs

CONFIG = {
    "task": {"source": "facts", "n_train": 40, "n_test": 10, "seed": 0},
    "model": {"name": "minilm", "dropout": 0.0, "max_length": 64},
    "run": {
        "seed": 0,
        "design": {"name": "everything", "epochs": 1, "batch_size": 4},
        "optimizer": {"name": "adamw", "lr": 5e-5},
    },
}
RUNS, REPEATS = 4, 3


def seconds(tuning: dict, processes: int) -> float:
    """For ``RUNS`` runs of 10 steps, the processes and their models being there already."""
    with tempfile.TemporaryDirectory() as folder:
        config = {**CONFIG, "tuning": tuning}
        record_runs(config, folder, count=processes, processes=processes, progress=False)
        start = time.perf_counter()
        record_runs(config, folder, count=processes + RUNS, processes=processes, progress=False)
        return time.perf_counter() - start


if __name__ == "__main__":
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    print(f"torch {torch.__version__}, {cores} cores, load {os.getloadavg()[0]:.1f} before\n")
    print(f"| tuning | 1 process × {cores} threads | {cores} × 1 | ratio |\n|---|---|---|---|")
    for tuning in ({"name": "last_layers", "layers": 1},):
        taken = {processes: [] for processes in (1, cores)}
        for _ in range(REPEATS):  # side by side, the best of each
            for processes, times in taken.items():
                times.append(seconds(tuning, processes))
        one, many = (min(times) for times in taken.values())
        print(f"| {tuning['name']} | {one:.1f} s | {many:.1f} s | {one / many:.2f} |")
    print(f"\n{RUNS} runs of 10 steps each; the better of {REPEATS}.")
