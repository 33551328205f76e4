"""What is left of skill where losses were recorded at fewer steps.

    python analysis/sparse.py [FOLDER] [--only NAME ...] [--cadences 1 5 15 last] [--output FILE]

Takes the run sets runs/…-minilm and, from FOLDER, a bank of recorded regimes (see bank.py). Of the training
runs only every 5th or 15th recorded loss is kept, the first and the last always; "last" keeps only these two;
"random" keeps every fifth on average, at other steps in each run. ``auto`` is fitted to them without scores
and with the scores there are (of a bank, those at several steps of one run). Its predictions of the held-out
runs are compared with all their recorded losses. Skill is 1 − MSE / MSE of the mean trajectory of the runs
with every loss, the same for all cadences.

One row a recording, scores, number of runs and cadence is written to ``--output`` (.csv; an interrupted run
goes on where it was), and a table of all rows beside it (.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from bank import HELD_OUT, load, run_set
from safetensors.numpy import load_file

from simfluence.evaluation import metrics
from simfluence.runs import RunSet
from simfluence.runs.run import Run
from simfluence.simulators import AutoSimulator, MeanTrajectory

HOME = ("openbookqa-minilm", "copa-minilm", "rte-minilm", "facts-minilm")
KEYS = ["recording", "scores", "runs", "cadence"]


@dataclass(frozen=True)
class Recording:
    """Recorded runs, how many of the first may train, which are held out, and scores (None without)."""

    name: str
    runs: RunSet
    sizes: tuple[int, ...]
    held_out: slice
    scores: list[np.ndarray] | None


def recordings(folder: Path | None, only: list[str] | None) -> Iterator[Recording]:
    """All recordings asked for, one at a time."""
    for name in HOME:
        path = Path("runs") / name
        if path.exists() and (only is None or name in only):
            scores = load_file(path / "scores_adam.safetensors")["scores"].astype(np.float64)
            yield Recording(name, RunSet.load(path), (20, 8), slice(-10, None), [scores])
    for file in sorted(folder.glob("*.npz")) if folder else []:
        if only is None or file.stem in only:
            regime = load(file)
            given = list(regime["scores_along"].astype(np.float64)) if regime["scores"].size else None
            yield Recording(file.stem, run_set(regime), (12,), HELD_OUT, given)


def thinned(runs: RunSet, cadence: str, seed: int = 0) -> RunSet:
    """The runs with the losses of fewer of their evaluated steps."""
    rng = np.random.default_rng(seed)
    return RunSet([_thinned(run, cadence, rng) for run in runs], runs.train, runs.test)


def _thinned(run: Run, cadence: str, rng: np.random.Generator) -> Run:
    at = np.arange(len(run.evaluated))
    if cadence == "random":
        keep = rng.random(len(at)) < 0.2
    else:
        keep = at % (len(at) if cadence == "last" else int(cadence)) == 0
    keep[[0, -1]] = True
    kept = {name: values[keep] for name, values in run.metrics.items()}
    return dataclasses.replace(run, metrics=kept, evaluated=run.evaluated[keep])


def skill(simulator: AutoSimulator, mean: MeanTrajectory, held_out: RunSet) -> float:
    """On all recorded losses of held-out runs."""
    own, other = (
        metrics.all_steps_mse(held_out.loss, one.simulate(held_out.curricula, held_out.initial_loss))
        for one in (simulator, mean)
    )
    return metrics.counterfactual_skill(own, other)


def table(rows: pd.DataFrame) -> str:
    """Skill by cadence, a row for each recording, scores and number of runs; at the end the mean share."""
    wide = rows.pivot_table("skill", KEYS[:3], "cadence", sort=False)
    wide = wide[[cadence for cadence in rows["cadence"].unique() if cadence in wide]]
    good = wide[wide.iloc[:, 0] > 0.1]
    shares = (good.div(good.iloc[:, 0], axis=0)).median()
    wide.loc[("median share of the first column, where that is above .1", "", ""), :] = shares
    return wide.reset_index().to_markdown(index=False, floatfmt=".2f") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--cadences", nargs="+", default=["1", "5", "15", "last", "random"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sparse.csv")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    frame = pd.DataFrame(columns=[*KEYS, "skill", "taken"])
    if options.output.exists():
        frame = pd.read_csv(options.output, dtype={"cadence": str}, keep_default_na=False)
    done = set(frame[KEYS].itertuples(index=False, name=None))
    for one in recordings(options.folder, options.only):
        for size in one.sizes:
            mean = MeanTrajectory().fit(one.runs[:size])
            for kind, scores in (("", None), ("scores", one.scores)):
                for cadence in options.cadences:
                    key = (one.name, kind, size, cadence)
                    if key in done or (kind and scores is None):
                        continue
                    simulator = AutoSimulator(scores).fit(thinned(one.runs[:size], cadence))
                    found = skill(simulator, mean, one.runs[one.held_out])
                    row = dict(zip(KEYS, key, strict=True)) | {"skill": found, "taken": simulator.taken_}
                    frame = pd.DataFrame([*frame.to_dict("records"), row])
                    frame.to_csv(options.output, index=False, float_format="%.4g")
                    print(*row.values(), flush=True)
    options.output.with_suffix(".md").write_text(table(frame))
    print(table(frame))


if __name__ == "__main__":
    main()
