"""What table B2 is measured on: two tasks, which examples are left out, the seeds, and where files lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf
from protocol import RESULTS, ROOT, chosen_rate

from simfluence.attribution import InfluenceScores
from simfluence.evaluation.standards import random_subsets, top_examples
from simfluence.options import compose

Mask = npt.NDArray[np.bool_]

DATA = RESULTS / "data" / "standards"
RECORDED = ROOT / "runs" / "facts-minilm"
"""The recorded runs of the facts, from which the simulator is fitted."""

N_TRAIN = 200
SEEDS = (0, 1, 2)
SCORED_ORDER = 100
"""The seed of the order of the run whose weights scores are taken at: no retraining has it."""

FRACTIONS = {"halves": 0.5, "5 % left out": 0.95}

METHODS = (
    *("random", "bm25", "representation", "gradient_dot", "gradient_cosine", "gradient_step"),
    *("ekfac", "trak", "influence", "tracin"),
)
SIMULATOR = "auto"
NAMES = {
    "random": "random",
    "bm25": "BM25",
    "representation": "representation",
    "gradient_dot": "gradient dot",
    "gradient_cosine": "gradient cosine",
    "gradient_step": "gradient, optimizer's metric",
    "ekfac": "EK-FAC",
    "trak": "TRAK",
    "influence": "influence, exact",
    "tracin": "TracIn, 10 checkpoints",
    "auto": "auto, from 20 runs",
}
"""Method → what tables call it."""

SHARES = (0.01, 0.05, 0.1)
DRAWS = 3
REMOVED_BY = ("gradient_cosine", "ekfac", "auto")
REMOVED_FOR = 8
"""The top of these methods is removed, for the first so many test examples."""


SUSPECTED_BY = ("bm25", "representation", "gradient_dot", "gradient_cosine", "gradient_step", "ekfac")
"""The methods that planted examples are looked for with."""

OF_LABELS = SUSPECTED_BY[2:]
"""Those of them that see labels, and so may find wrong ones."""


@dataclass(frozen=True)
class Measured:
    """A task: its name, and its options of ``simfluence record``."""

    name: str
    options: tuple[str, ...]

    def configuration(self) -> dict[str, Any]:
        """The experiment on all training examples, as the package's functions take it."""
        composed = OmegaConf.to_container(
            compose("record", [*self.options, "tuning.layers=2", "run=everything", "run.metrics=[accuracy]"]),
            resolve=True,
        )
        assert isinstance(composed, dict)
        return {str(key): composed[key] for key in ("task", "model", "tuning", "run")}


FACTS = Measured("facts", ("task=facts", "run.optimizer.lr=1e-4"))


def copa(data: Path) -> Measured:
    """COPA from the folder of copa.jsonl."""
    options = (
        *("task=jsonl", f"task.path={data / 'copa.jsonl'}", "task.name=copa", "task.n_test=20"),
        f"run.optimizer.lr={chosen_rate('copa', 'last_layers')}",
    )
    return Measured("copa", options)


# ------------------------------------------------------------------------------------- what is left out


def subsets(fraction: str) -> Mask:
    """bool [100, train]: the random subsets of a fraction, the same for both tasks."""
    return random_subsets(N_TRAIN, FRACTIONS[fraction], 100, seed=list(FRACTIONS).index(fraction))


def without(rows: npt.ArrayLike) -> Mask:
    """bool [train]: everything but these examples."""
    kept = np.ones(N_TRAIN, bool)
    kept[np.asarray(rows, int)] = False
    return kept


def left_out() -> npt.NDArray[np.intp]:
    """The 20 training examples that are left out one by one."""
    return np.random.default_rng(7).choice(N_TRAIN, 20, replace=False)


def leave_one_out_sets() -> Mask:
    """bool [21, train]: everything, then everything but one."""
    return np.stack([without([]), *[without([row]) for row in left_out()]])


def random_removals(share: float) -> Mask:
    """bool [draw, train]: a share of the examples removed at random."""
    return random_subsets(N_TRAIN, 1 - share, DRAWS, seed=int(1000 * share))


def removal_sets(scores: Mapping[str, InfluenceScores]) -> Mask:
    """bool [subset, train]: everything, then share by share the random removals and the top of each method,
    test example by test example; sets that two of them share are trained once."""
    sets = [without([])]
    for share in (SHARES[1], SHARES[2], SHARES[0]):
        sets += [*random_removals(share)]
        sets += [
            without(top_examples(scores[method].scores[:, z], share))
            for z in range(REMOVED_FOR)
            for method in REMOVED_BY
        ]
    return np.array(list(dict.fromkeys(map(tuple, sets))))


# ------------------------------------------------------------------------------------------------ files


def bank_file(task: str, which: str) -> Path:
    """Where a bank of a task lies: "halves", "5 % left out", "removals" or "leave-one-out"."""
    return DATA / f"{task}-{which.replace('5 % left out', 'left-out')}.parquet"


def scores_file(task: str, method: str) -> Path:
    """Where a method's scores lie."""
    return DATA / f"{task}-{method}.safetensors"


def simulated_file(task: str, fraction: str) -> Path:
    """Where the simulated final losses of a fraction's subsets lie."""
    return DATA / f"{task}-simulated-{fraction.replace('5 % left out', 'left-out')}.safetensors"


def scores_of(task: str) -> dict[str, InfluenceScores]:
    """Method → scores, of those that are measured."""
    files = {method: scores_file(task, method) for method in (*METHODS, SIMULATOR)}
    return {method: InfluenceScores.load(file) for method, file in files.items() if file.exists()}
