"""How long it takes to rank every training example by leaving it out: simulated, and to first order.

    python analysis/benchmarks/rank.py

Training dynamics whose kernel are scores, with effects beside them, fitted to four runs; 100 test examples.
Every run uses seven tenths of the training examples, four times each or more.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import pandas as pd
from common import environment, trained_runs, write
from scipy import stats

from simfluence import RunSet
from simfluence.curriculum import remove
from simfluence.fitted import Fitted
from simfluence.questions.many import many_changes
from simfluence.questions.rank import rank
from simfluence.simulators import make_simulator

SIZES = ((200, 140, 4), (1000, 500, 8), (10_000, 2500, 16))
"""Training examples, steps and batch."""
SIMULATED = 128
"""So many removals are simulated; the time of all is in proportion."""


def main() -> None:
    warnings.simplefilter("ignore")
    started, rows = environment(), []
    for n, steps, batch in SIZES:
        runs, scores = trained_runs(n, 100, 5, steps, batch)
        begin = time.perf_counter()
        simulator = make_simulator("effects", scores=scores, kernel="scores", penalty=100.0, max_rows=500)
        fitted = Fitted(simulator.fit(runs[:4]))
        rows.append({"n": n, "steps": steps, "batch": batch, "fit, s": time.perf_counter() - begin})
        rows[-1].update(timed(fitted, runs))
    frame = pd.DataFrame(rows)
    notes = [
        f"Simulated: {SIMULATED} removals of examples, times the number of examples that the run used.",
        "First order: the whole ranking as a frame, with 16 simulated removals; everything compiled before.",
        "Pearson: between simulated and first-order changes of the mean final loss, over these removals.",
    ]
    write("rank", {"Leaving out every training example": frame}, notes, started)


def timed(fitted: Fitted, runs: RunSet) -> dict[str, float]:
    """Seconds to rank all examples both ways, and how far both agree."""
    run = runs[-1]
    asked = {"train": runs.train, "test": runs.test, "of": "all"}
    rank(fitted, run, **asked, first_order=True)  # compiles
    begin = time.perf_counter()
    frame = rank(fitted, run, **asked, first_order=True).set_index("id")
    first_order = time.perf_counter() - begin
    used = np.random.default_rng(0).permutation(run.curriculum.used)[:SIMULATED]
    begin = time.perf_counter()
    edited = [remove(run.curriculum, [row]) for row in used]
    exact = many_changes(fitted, run, edited, with_residual=False).change.mean(1)
    simulated = (time.perf_counter() - begin) * len(frame) / len(used)
    predicted = frame.loc[[runs.train.ids[row] for row in used], "change"]
    return {
        "ranked": len(frame),
        "simulated, s": simulated,
        "first order, s": first_order,
        "Pearson": stats.pearsonr(exact, predicted).statistic,
    }


if __name__ == "__main__":
    main()
