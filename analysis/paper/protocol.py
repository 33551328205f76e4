"""What the benchmark's run sets are: three tasks, each under four kinds of fine-tuning of MiniLM-L6.

Each set has 32 runs by the published protocol (Guu et al. 2023, section 4; Chai et al. 2024, section 4): a
run draws 128 of 200 training examples, three passes over them in batches of 4, 96 steps; the loss of every
test example is recorded after each. The first 20 runs train simulators, the next 2 validate, the last 10
test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from simfluence.options import compose

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "paper"
RESULTS = ROOT / "analysis" / "results" / "paper"
CELLS = RESULTS / "cells"
"""Where cells of the benchmark are kept while tables are made; not committed."""

TASKS = ("copa", "rte", "winogrande")
TUNINGS = {
    "full": ["tuning=full"],
    "ia3": ["tuning=ia3", "tuning.layers=2"],
    "lora": ["tuning=lora", "tuning.layers=2"],
    "last_layers": ["tuning=last_layers", "tuning.layers=2"],
}
"""Kind of fine-tuning → options. Learnt scales (IA3) and low-rank updates (LoRA) stand in the last two
layers, so that what those below give is computed once."""

SETS = tuple(f"{task}-{tuning}" for task in TASKS for tuning in TUNINGS)

RUN_COUNT, TRAIN, VALIDATION, N_TEST = 32, 20, 2, 20
LEARNT = 0.9
"""The share of its first pass's training loss that a run's last pass has at most, at the rate chosen."""


def configuration(task: str, tuning: str, rate: float | None = None) -> dict[str, Any]:
    """The experiment as :func:`simfluence.finetuning.experiment.record_runs` takes it, from within the folder
    of the task's JSONL file (so that no recording holds a path of the machine).

    rate : the learning rate; None: the one that the sweep chose.
    """
    rate = chosen_rate(task, tuning) if rate is None else rate
    options = [
        "task=jsonl",
        f"task.path={task}.jsonl",
        f"task.name={task}",
        f"task.n_test={N_TEST}",
        *TUNINGS[tuning],
        f"run.optimizer.lr={rate}",
        "run.eval_batch_size=20",
        "run.metrics=[accuracy]",
    ]
    composed = OmegaConf.to_container(compose("record", options), resolve=True)
    assert isinstance(composed, dict)
    return {str(key): composed[key] for key in ("task", "model", "tuning", "run")}


def chosen_rate(task: str, tuning: str) -> float:
    """The learning rate by the rule of analysis/paper/rates.py, from what was swept."""
    swept = pd.read_csv(RESULTS / "rates.csv").query("task == @task and tuning == @tuning")
    if swept.empty:
        raise ValueError(f"no rates are swept for {task}, {tuning}: run analysis/paper/rates.py first")
    share = swept["last over first"]
    enough = swept[share <= LEARNT]
    return float(enough["rate"].min() if len(enough) else swept["rate"][share.idxmin()])


def recorded_and_scored(name: str) -> bool:
    """Whether a set's runs and scores are all there."""
    runs, scores = RUNS / name, RUNS / name / "scores"
    return (runs / f"run-{RUN_COUNT - 1:03d}" / "steps.parquet").exists() and (
        scores / "influence.safetensors"
    ).exists()
