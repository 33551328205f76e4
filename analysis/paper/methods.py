"""The rows of the main table: what is compared on every run set, in the order in which it is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from protocol import TRAIN

from simfluence.attribution import InfluenceScores
from simfluence.evaluation import Method
from simfluence.runs import RunSet
from simfluence.simulators import (
    AdditiveSimulator,
    AutoSimulator,
    DynamicsSimulator,
    LinearSimulator,
    MultiplicativeSimulator,
    ScoresSimulator,
    Simulator,
)

CHECKPOINTS = 10
SIZES = (1, 8)
"""Numbers of training runs that ours is fitted to, beside all."""
NEEDED, CADENCES = (1, 2, 4, 8, TRAIN), (4, 16)
"""Numbers of runs, and steps between known losses, of the table by needs."""

NO_UNITS = "no units"
"""Why a method has no row "as is": its scores are similarities, not changes of losses."""


def scores_of(folder: Path) -> dict[str, InfluenceScores]:
    """The attribution methods of a run set: name in tables → scores."""
    files = {
        file.stem: InfluenceScores.load(file) for file in sorted((folder / "scores").glob("*.safetensors"))
    }
    along = files["gradient_dot_along"]
    last = along.steps[-1]
    ten = [round(last * k / CHECKPOINTS) for k in range(1, CHECKPOINTS + 1)]
    nearest = [int(np.argmin(np.abs(np.array(along.steps) - step))) for step in ten]
    found = {
        f"TracIn-CP, {CHECKPOINTS} checkpoints": replace(
            along, scores=along.scores[nearest].mean(0), steps=()
        ),
        "TracIn, weights of the time": along,
        "gradient dot": replace(along, scores=along.scores[-1], steps=()),
        "gradient cosine": files["gradient_cosine"],
        "gradient in the optimizer's metric": files["gradient_step"],
        "EK-FAC influence": files["ekfac"],
        "influence, Gauss-Newton": files["influence"],
        "TRAK": files["trak"],
        "representation": files["representation"],
        "BM25": files["bm25"],
    }
    return {name: replace(scores, scores=scores.scores.astype(np.float64)) for name, scores in found.items()}


def methods(folder: Path, runs: RunSet) -> list[Method]:
    """Every row but the baselines, which the benchmark adds."""
    scores = scores_of(folder)
    found: list[Method] = []

    def add(name: str, make: Callable[[], Simulator], size: int | None = None) -> None:
        found.append(Method(name, make, size, key=name))

    for name, given in scores.items():
        if given.weighing:
            add(f"{name}, as is", partial(ScoresSimulator, given, False))
        add(f"{name}, calibrated", partial(ScoresSimulator, given))
        if not (runs.loss <= 0).any():
            add(f"{name}, kernel", partial(DynamicsSimulator, given))
    add("additive", AdditiveSimulator)
    add("multiplicative", MultiplicativeSimulator)
    add("linear", LinearSimulator)
    initial = scores["gradient in the optimizer's metric"]
    for size in (*SIZES, TRAIN):
        add(f"ours, {in_runs(size)}", AutoSimulator, size)
        add(f"ours, {in_runs(size)} and scores", partial(AutoSimulator, initial), size)
    return found


def what_they_need(folder: Path) -> dict[str, list[Method]]:
    """What ours and the linear simulator are given → the cells of the table by needs: fewer runs, losses at
    fewer steps, scores or none."""
    initial = scores_of(folder)["gradient in the optimizer's metric"]
    given: dict[str, Callable[[], Simulator]] = {
        "linear": LinearSimulator,
        "ours": AutoSimulator,
        "ours and scores": partial(AutoSimulator, initial),
    }
    found = {}
    for name, make in given.items():
        simulator, _, scores = name.partition(" and ")
        named = [f"{simulator}, {in_runs(size)}" + (f" and {scores}" if scores else "") for size in NEEDED]
        found[name] = [Method(one, make, size, key=one) for one, size in zip(named, NEEDED, strict=True)]
        for every in CADENCES:
            one = f"{named[-1]}, losses every {every} steps"
            found[name].append(Method(one, make, TRAIN, every, key=one))
    return found


def in_runs(number: int) -> str:
    return f"{number} run{'s' * (number > 1)}"
