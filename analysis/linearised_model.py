"""Held-out skill of the linearised model, alone and beside effects, and of ``AutoSimulator``.

    python analysis/linearised_model.py [set ...] [--sizes 8 20] [--data FOLDER]

Takes the Jacobians of all examples at the weights before training (a minute a set). The first runs of a set
are fitted, the last ten are held out. Tasks that are read from files are looked for in --data. Writes
analysis/results/linearised_model.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path

import numpy as np
import pandas as pd
from linearised import LinearisedSimulator, linearise_runs

from simfluence.attribution import InfluenceScores
from simfluence.evaluation import metrics
from simfluence.runs import RunSet
from simfluence.simulators import AutoSimulator, MeanTrajectory, Simulator

RUNS = Path(__file__).parents[1] / "runs"
RESULTS = Path(__file__).parent / "results"
SETS = ("rte-minilm", "copa-minilm", "openbookqa-minilm", "facts-minilm", "copa-minilm-high-rate")
HELD_OUT = 10


def measure(simulator: Simulator, train: RunSet, test: RunSet) -> dict[str, float]:
    """Skill over the mean trajectory, mean Spearman correlation across runs, and seconds to fit."""
    start = time.perf_counter()
    simulator.fit(train)
    seconds = time.perf_counter() - start
    losses, mean = (
        one.simulate(test.curricula, test.initial_loss) for one in (simulator, MeanTrajectory().fit(train))
    )
    skill = metrics.counterfactual_skill(*(metrics.all_steps_mse(test.loss, one) for one in (losses, mean)))
    across = metrics.across_runs_spearman(metrics.final_loss(test.loss), metrics.final_loss(losses))
    return {"skill": skill, "across-runs Spearman": float(np.nanmean(across)), "seconds to fit": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 20])
    parser.add_argument("--data", type=Path, default=Path.cwd())
    options = parser.parse_args()
    rows = []
    for name in options.sets:
        runs = RunSet.load(RUNS / name)
        with contextlib.chdir(options.data):
            model = linearise_runs(runs)
        scores = InfluenceScores.load(RUNS / name / "scores_adam.safetensors")
        for size in options.sizes:
            simulators = {
                "linearised model alone": LinearisedSimulator(model),
                "linearised model, effects beside it": LinearisedSimulator(model, penalty=None),
                "auto": AutoSimulator(),
                "auto, Adam's scores": AutoSimulator(scores),
            }
            for simulator, made in simulators.items():
                key = {"set": name, "training runs": size, "simulator": simulator}
                rows.append(key | measure(made, runs[:size], runs[-HELD_OUT:]))
                print(*rows[-1].values(), sep="  ", flush=True)
    pd.DataFrame(rows).to_csv(RESULTS / "linearised_model.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
