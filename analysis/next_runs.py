"""Does choosing which runs to record pay? Four chosen runs against four random ones, on committed sets.

    python analysis/next_runs.py                          (a minute)
    python analysis/next_runs.py --measure effects        (three minutes on one quiet core)
    python analysis/next_runs.py --measure "effects, few"

Of a set of recorded runs, 6 are taken as recorded so far, 6 (of the sets of 16 runs: 3) as questions, and the
others as candidates. A question is what changes where one of the 6 is trained on a question run's curriculum
instead: its true answer is recorded. For each, 4 candidates are chosen by `chosen_rows`, or drawn at random
ten times; a simulator is fitted to the 10 runs, and the mean squared error of the predicted change over test
examples is divided by that of predicting no change. All of it is repeated for ten draws of the six (the
interval is over these).

The simulator is ridge regression of the last loss on how often each example was used, with the λ that is
used for choosing. With --measure effects it is the package's effects simulator, which reads the losses of
all steps; with "effects, few" 2 runs are recorded and 1 is added (``MEASURED``).

Results: results/next_runs.csv and .md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from simfluence import RunSet
from simfluence.questions.many import many_changes
from simfluence.questions.next_runs import NOISE, chosen_rows
from simfluence.simulators import Simulator, make_simulator

HERE = Path(__file__).resolve().parent
RESULTS, SETS = HERE / "results", HERE.parent / "runs"
NAMES = (
    *("openbookqa-minilm", "copa-minilm", "facts-minilm", "rte-minilm", "copa-minilm-high-rate"),
    *("openbookqa-minilm-pool", "copa-minilm-pool"),
)
MEASURED = {
    "ridge": (NAMES, 6, 4, 10, 6, 10),
    "effects": (NAMES[:3], 6, 4, 10, 4, 2),
    "effects, few": (NAMES[:3], 2, 1, 10, 4, 4),
}
"""By name: sets, runs recorded so far, runs added, draws, questions a draw, random choices a question."""
Predict = Callable[[np.ndarray, int, int], np.ndarray]
"""From the runs to fit to, a run and another: the predicted change [test] from one to the other."""


def use_of(runs: RunSet) -> np.ndarray:
    """float [run, train]."""
    return np.stack([one.counts().sum(0) for one in runs.curricula]).astype(np.float64)


def by_ridge(runs: RunSet) -> Predict:
    use, last = use_of(runs), np.stack([run.loss[-1] for run in runs]).astype(np.float64)

    def predict(rows: np.ndarray, one: int, other: int) -> np.ndarray:
        x, y = use[rows] - use[rows].mean(0), last[rows] - last[rows].mean(0)
        penalty = NOISE * np.square(x).sum(1).mean()
        weights = np.linalg.solve(x @ x.T + penalty * np.eye(len(rows)), y)
        return (use[other] - use[one]) @ x.T @ weights

    return predict


def by_simulator(runs: RunSet, name: str) -> Predict:
    @lru_cache
    def fitted(rows: tuple[int, ...]) -> Simulator:
        return make_simulator(name).fit(runs[list(rows)])

    def predict(rows: np.ndarray, one: int, other: int) -> np.ndarray:
        return many_changes(fitted(tuple(rows.tolist())), runs[one], [runs[other].curriculum]).change[0]

    return predict


def measured(
    name: str, so_far: int, added: int, draws: int, questions: int, randoms: int, simulator: str
) -> list[dict[str, object]]:
    """A row a draw: errors relative to predicting no change."""
    runs = RunSet.load(SETS / name)
    use, last = use_of(runs), np.stack([run.loss[-1] for run in runs]).astype(np.float64)
    predict = by_ridge(runs) if simulator == "ridge" else by_simulator(runs, simulator.split(",")[0])
    held = 6 if len(runs) > 20 else 3
    found = []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        order = rng.permutation(len(runs))
        recorded, asked, candidates = np.split(order, [so_far, so_far + held])
        one, rows = int(recorded[0]), use[recorded] - use[recorded].mean(0)
        penalty = NOISE * float(np.square(rows).sum(1).mean())
        errors = []
        for question in asked[:questions].tolist():
            change = (use[question] - use[one])[None]
            chosen, _ = chosen_rows(rows, use[candidates] - use[recorded].mean(0), change, penalty, added)
            more = [np.array([], int), candidates[chosen]]
            more += [rng.choice(candidates, added, replace=False) for _ in range(randoms)]
            true = last[question] - last[one]
            missed = [predict(np.append(recorded, each), one, question) - true for each in more]
            none, best, *drawn = np.square(missed).mean(1)
            errors.append((none, best, np.mean(drawn), np.square(true).mean()))
        six, four, random, zero = np.mean(errors, 0)
        print(name, draw, six / zero, four / zero, random / zero, flush=True)
        about = {"set": name, "simulator": simulator, "draw": draw, "candidates": len(candidates)}
        about |= {"so far": so_far, "added": added}
        found.append({**about, "before": six / zero, "chosen": four / zero, "random": random / zero})
    return found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (simulator, name), part in table.groupby(["simulator", "set"], sort=False):
        gain = (part["random"] - part["chosen"]).to_numpy()
        half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
        means, mean = part[["before", "random", "chosen"]].mean(), gain.mean()
        rows.append(
            {
                "simulator": simulator,
                "set": name,
                "candidates": part["candidates"].iloc[0],
                "runs": part["so far"].iloc[0],
                "error": means["before"],
                "added": part["added"].iloc[0],
                "error, random": means["random"],
                "error, chosen": means["chosen"],
                "random − chosen": f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", choices=list(MEASURED), default="ridge")
    simulator, file = parser.parse_args().measure, RESULTS / "next_runs.csv"
    before = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["simulator"])
    names, *counts = MEASURED[simulator]
    rows = [row for name in names for row in measured(name, *counts, simulator)]
    parts = [before[before["simulator"] != simulator], pd.DataFrame(rows)]
    table = pd.concat([part for part in parts if len(part)]).sort_values("simulator", ascending=False,
                                                                         kind="stable")  # fmt: skip
    table.to_csv(file, index=False, float_format="%.5f")
    text = summary(table).to_markdown(index=False, floatfmt=".3f")
    note = (
        "Mean squared error of the predicted change, divided by that of predicting none; the last column is"
        " a mean over draws of the six runs [95% interval].\n\n"
        "Made by `python analysis/next_runs.py`, `… --measure effects` and `… --measure 'effects, few'`."
    )
    (RESULTS / "next_runs.md").write_text(f"{text}\n\n{note}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
