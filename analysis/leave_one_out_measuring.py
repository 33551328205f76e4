"""What leave_one_out.py shows, measured: training examples left out one by one, and the run trained again.

Training examples of the last run of a recorded set are left out, as ``what_if`` leaves them out. To see the
noise of training, the same is done with half of them in another order of the run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from simfluence.curriculum import Curriculum, remove, shuffle
from simfluence.finetuning.experiment import prepare
from simfluence.finetuning.retrain import recorded_config, retrain
from simfluence.finetuning.subsets import outcome
from simfluence.runs import Run, RunSet

RECORDED = {name: Path(__file__).parents[1] / "runs" / f"{name}-minilm" for name in ("openbookqa", "facts")}
EXAMPLES, AGAIN = {"openbookqa": 30, "facts": 20}, {"openbookqa": 15, "facts": 10}
"""How many examples are left out of the run as it was recorded, and how many of these in another order."""

NOTHING = "nothing"
"""What stands for the example left out where none is."""


def measured(name: str) -> Path:
    """The file of the final losses of a set: order, the example left out, and a column a test example."""
    return Path(__file__).parent / "results" / f"leave_one_out_{name}.csv"


def chosen(run: Run, count: int) -> npt.NDArray[np.int64]:
    """Which training examples are left out: drawn of those that the run used."""
    return np.random.default_rng(0).permutation(run.curriculum.used)[:count]


def orders(run: Run) -> dict[str, Curriculum]:
    """The run's curriculum as it was recorded, and in another order."""
    return {"recorded": run.curriculum, "shuffled": shuffle(run.curriculum, np.random.default_rng(1))}


def measure(name: str) -> None:
    """Train without each example in turn, write the final losses; what is there is not trained again."""
    torch.set_num_threads(1)
    runs, file = RunSet.load(RECORDED[name]), measured(name)
    run = runs[-1]
    prepared = prepare(recorded_config(run), "cpu")
    found = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["order", "left_out"])
    wanted: list[tuple[str, str, Curriculum]] = []
    for order, curriculum in orders(run).items():
        wanted.append((order, NOTHING, curriculum))
        for row in chosen(run, (EXAMPLES if order == "recorded" else AGAIN)[name]):
            wanted.append((order, runs.train.ids[row], remove(curriculum, [int(row)])))
    done = set(zip(found["order"], found["left_out"], strict=True))
    for order, left_out, curriculum in tqdm([one for one in wanted if one[:2] not in done], unit="training"):
        again = replace(run, config=recorded_config(run), curriculum=curriculum)
        for _ in retrain(prepared, again):
            pass
        losses = pd.DataFrame([outcome(prepared).losses], columns=runs.test.ids)
        losses.insert(0, "order", order)
        losses.insert(1, "left_out", left_out)
        found = pd.concat([found, losses]) if len(found) else losses
        found.to_csv(file, index=False, float_format="%.7g")
