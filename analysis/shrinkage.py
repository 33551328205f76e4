"""How far to shrink what attribution scores say of a single run: multipliers of deviations compared.

    python analysis/shrinkage.py

Of each committed set with scores in the optimizer's metric, one run at a time is taken (three of them), with
all its evaluations and with twelve. Dynamics with the scores as their kernel are fitted to it, and say by how
much the last losses of the set's other runs differ from its own, on log(eᴸ − 1). What they say is multiplied
by R² (the share of the run's fluctuations that scores explain, ``explained_share``), by R, by 1, or by the
number that would have been best; skill is 1 − MSE / MSE of no difference. Writes results/shrinkage.csv and
.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from simfluence.links import link
from simfluence.runs import Run, RunSet
from simfluence.scores import InfluenceScores
from simfluence.simulators.dynamics.fit import fit_dynamics
from simfluence.simulators.dynamics.model import batches_of
from simfluence.simulators.effects.data import TrainingData

HERE = Path(__file__).resolve().parent
RUNS, RESULTS = HERE.parent / "runs", HERE / "results"
SCORES = ("scores_adam.safetensors", "scores/gradient_step.safetensors", "scores.safetensors")
BASES, FEW = 3, 12
OTHERS = 37
"""Runs beside the first three, at most."""


def main() -> None:
    folders = sorted(folder for folder in [*RUNS.glob("*"), *RUNS.glob("paper/*")] if scores_of(folder))
    rows = [row for folder in folders for row in rows_of(folder)]
    frame = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    frame.to_csv(RESULTS / "shrinkage.csv", index=False, float_format="%.4g")
    skills = ["R²", "R", "1", "best"]
    parts = {
        "Mean over all sets and runs": frame.groupby("evaluations")[skills].mean(),
        "The lowest of all": frame.groupby("evaluations")[skills].min(),
        "Means of sets": frame.groupby("set")[["explained", "best multiplier", *skills]].mean(),
    }
    tables = [f"## {title}\n\n{part.to_markdown(floatfmt='.3f')}" for title, part in parts.items()]
    title = "# Skill of a single run's scores by what they are multiplied by"
    text = "\n\n".join([title, "Made by `python analysis/shrinkage.py`.", *tables])
    (RESULTS / "shrinkage.md").write_text(f"{text}\n", encoding="utf-8")
    print("\n\n".join(tables))


def scores_of(folder: Path) -> Path | None:
    """The scores in the optimizer's metric, or those that there are."""
    return next((folder / name for name in SCORES if (folder / name).exists()), None)


def rows_of(folder: Path) -> list[dict[str, object]]:
    runs = RunSet.load(folder)
    scores = InfluenceScores.load(scores_of(folder)).scores
    length = len(runs[0].curriculum)
    others = [run for run in runs[: BASES + OTHERS] if len(run.curriculum) == length]
    return [
        {
            "set": folder.name,
            "run": number,
            "evaluations": evaluations,
            **skills(runs, number, few, scores, others),
        }
        for number in range(BASES)
        for evaluations, few in (("all", False), ("twelve", True))
    ]


def skills(runs: RunSet, number: int, few: bool, scores: np.ndarray, others: list[Run]) -> dict[str, float]:
    """The skill of the other runs' predicted differences from one, by multiplier."""
    base = runs[number]
    one = thinned(base) if few else base
    data = TrainingData(RunSet([one], runs.train, runs.test), scores[None], max_rows=2000)
    fitted = fit_dynamics(-scores, data, changing=True, whole=True)
    last = np.array([len(base.curriculum)])
    said, true = [], []
    for run in others:
        if run.curriculum.fingerprint != base.curriculum.fingerprint:
            both = batches_of([base.curriculum, run.curriculum])
            own, other = fitted.dynamics.changed(both, last, data.rates.own([base, run]))[:, 0]
            said.append(other - own)
            true.append(link(run.loss[-1], "log_odds") - link(base.loss[-1], "log_odds"))
    root = np.sqrt(max(fitted.explained, 1e-12))
    found, wanted = np.array(said) / root, np.array(true)
    best = float((found * wanted).sum() / max(np.square(found).sum(), 1e-300))
    multipliers = {"R²": fitted.explained, "R": root, "1": 1.0, "best": best}
    skill = {
        name: 1 - np.square(wanted - by * found).sum() / np.square(wanted).sum()
        for name, by in multipliers.items()
    }
    return {"explained": fitted.explained, "best multiplier": best, **skill}


def thinned(run: Run) -> Run:
    """The run with about twelve of its evaluations, more at the beginning."""
    wanted = np.r_[0, np.geomspace(1, len(run.curriculum), FEW - 1)]
    kept = np.unique([np.abs(run.evaluated - step).argmin() for step in wanted])
    return replace(run, evaluated=run.evaluated[kept], metrics={"loss": run.loss[kept]})


if __name__ == "__main__":
    main()
