"""The learning rates of the benchmark's run sets, by a sweep of one run a rate.

    python analysis/paper/rates.py DATA          (the folder of copa.jsonl, rte.jsonl and winogrande.jsonl)

The rule: the smallest rate of the grid (half decades) at which the mean training loss over the last of the
three passes is at most 80 % of that over the first. So every set learns its training examples, none is
driven faster than it takes, and no test loss is looked at. Where no rate does, the rate that comes nearest.
Writes analysis/results/paper/rates.csv; rates that stand there are not run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from protocol import RESULTS, TASKS, TUNINGS, configuration

from simfluence.finetuning.experiment import planned_curricula, prepare
from simfluence.finetuning.loop import train
from simfluence.finetuning.optimizers import make_optimizer

GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST = {"full": 1e-5, "last_layers": 1e-5, "lora": 1e-4, "ia3": 1e-3}
"""Where the sweep of a kind of fine-tuning begins."""
LEARNT = 0.8


class TrainingLosses:
    """What the training loop reports to in place of a recorder: it keeps the training losses."""

    start = 0

    def __init__(self) -> None:
        self.losses: list[float] = []

    def step(self, example_ids: list[str], train_loss: torch.Tensor) -> None:
        self.losses.append(float(train_loss.detach()))


def last_over_first(config: dict[str, Any]) -> float:
    """The mean training loss of the run's last pass, as a share of that of its first."""
    prepared = prepare(config)
    prepared.model.load_state_dict(prepared.initial)
    curriculum = planned_curricula(config, prepared.task, 1)["run-000"]
    trained = [parameter for parameter in prepared.model.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(trained, len(curriculum), **config["run"]["optimizer"])
    kept: Any = TrainingLosses()
    train(prepared.model, prepared.task.train, curriculum, optimizer, kept, schedule)
    first, _, last = np.split(np.array(kept.losses), 3)
    return float(last.mean() / first.mean())


def main() -> None:
    """Sweep what is not swept yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / "rates.csv"
    for task in options.tasks:
        for tuning in TUNINGS:
            rows = []
            known = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["task", "tuning"])
            if ((known["task"] == task) & (known["tuning"] == tuning)).any():
                continue
            for rate in (rate for rate in GRID if rate >= FIRST[tuning]):
                share = last_over_first(configuration(task, tuning, options.data, rate))
                rows.append({"task": task, "tuning": tuning, "rate": rate, "last over first": round(share, 3)})
                print(rows[-1], file=sys.stderr, flush=True)
                if share <= LEARNT:
                    break
            frame = pd.DataFrame(rows)
            frame["chosen"] = frame.index == frame["last over first"].idxmin()
            pd.concat([known, frame]).to_csv(file, index=False)


if __name__ == "__main__":
    main()
