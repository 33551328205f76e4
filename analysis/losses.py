"""Skill on losses of other scales and signs.

    python analysis/losses.py FOLDER [--only NAME ...]

Takes regimes of the bank in FOLDER (see bank.py), transforms the losses of all runs, fits ``auto`` with
scores along a run to the first 12, and prints the skill on the last four, all steps, on the transformed
losses.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from bank import HELD_OUT, load, run_set

from simfluence.evaluation import evaluate
from simfluence.runs import RunSet
from simfluence.simulators import AutoSimulator

TRANSFORMED = {
    "as they are": lambda losses: losses,
    "times 1000": lambda losses: 1000 * losses,
    "times 1e-6": lambda losses: 1e-6 * losses,
    "minus 5": lambda losses: losses - 5,
    "margin, log(e^L - 1)": lambda losses: np.log(np.expm1(np.maximum(losses, 1e-9))),
    "accuracy, e^-L > 1/2": lambda losses: (np.exp(-losses) > 0.5).astype(np.float64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=["mlp-adam", "regression-mlp"])
    options = parser.parse_args()
    rows = []
    for name in options.only:
        regime = load(options.folder / f"{name}.npz")
        runs, scores = run_set(regime), list(regime["scores_along"].astype(np.float64))
        for how, transformed in TRANSFORMED.items():
            changed = [
                dataclasses.replace(run, metrics={"loss": transformed(run.loss.astype(np.float64))})
                for run in runs
            ]
            one = RunSet(changed, runs.train, runs.test)
            auto = AutoSimulator(scores)
            skill, _ = evaluate({"auto": auto}, one[:12], one[HELD_OUT]).skill("auto")
            rows.append({"regime": name, "losses": how, "skill": skill, "taken": auto.taken_})
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".2f"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
