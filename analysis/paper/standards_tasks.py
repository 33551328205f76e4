"""What table B2 is measured on: two tasks, the subsets of their training examples, the seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf
from protocol import RESULTS

from simfluence.evaluation.standards import random_subsets
from simfluence.options import compose

DATA = RESULTS / "data" / "standards"
N_TRAIN = 200
EPOCHS, BATCH = 3, 4
SEEDS = (0, 1, 2)
SCORED_ORDER = 100
"""The seed of the order of the run whose weights scores are taken at: no retraining has it."""

FRACTIONS = {"halves": 0.5, "5 % left out": 0.95}


def subsets(fraction: str) -> npt.NDArray[np.bool_]:
    """bool [100, train]: the random subsets of a fraction, the same for both tasks."""
    return random_subsets(N_TRAIN, FRACTIONS[fraction], 100, seed=list(FRACTIONS).index(fraction))


def bank_file(task: str, fraction: str) -> Path:
    """Where the bank of a task and a fraction lies."""
    return DATA / f"{task}-{'halves' if fraction == 'halves' else 'left-out'}.parquet"


@dataclass(frozen=True)
class Measured:
    """A task: its options of ``simfluence record``, and how many trainings of each bank there shall be."""

    name: str
    options: tuple[str, ...]
    trainings: dict[str, int]

    def configuration(self) -> dict[str, Any]:
        """The experiment on all training examples, as the package's functions take it."""
        composed = OmegaConf.to_container(
            compose("record", [*self.options, "tuning.layers=2", "run=everything", "run.metrics=[accuracy]"]),
            resolve=True,
        )
        assert isinstance(composed, dict)
        return {str(key): composed[key] for key in ("task", "model", "tuning", "run")}


FACTS = Measured("facts", ("task=facts", "run.optimizer.lr=1e-4"), {"halves": 200, "5 % left out": 100})


def copa(data: Path) -> Measured:
    """COPA from the folder of copa.jsonl."""
    options = (
        *("task=jsonl", f"task.path={data / 'copa.jsonl'}", "task.name=copa", "task.n_test=20"),
        "run.optimizer.lr=3e-5",
    )
    return Measured("copa", options, {"halves": 100, "5 % left out": 0})
