"""How long a what-if with bands and a verdict takes once the simulator is fitted, beside its two simulations.

    python analysis/benchmarks/whatif.py

1000 training examples, runs of 500 steps, 100 test examples, ``auto`` with scores fitted to 8 runs.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import pandas as pd
from common import environment, side_by_side, trained_runs, write

from simfluence import AutoSimulator, Edit, fit, what_if


def main() -> None:
    warnings.simplefilter("ignore")
    started = environment()
    runs, scores = trained_runs(1000, 100, 9, 500, 8)
    begin = time.perf_counter()
    fitted = fit(runs, AutoSimulator(scores), validation=0)
    seconds = time.perf_counter() - begin
    run, edit = runs[-1], Edit("remove", ids=list(range(50)))
    edited = edit.apply(run, runs.train)

    def answer() -> None:
        what_if(fitted, run, edit, train=runs.train, test=runs.test)

    def simulations() -> np.ndarray:
        return fitted.simulator.simulate([run.curriculum, edited], run.initial_loss)

    answer()
    (whole, _), (alone, _) = side_by_side(answer, simulations, repeats=10)
    row = {
        "case": "n 1000, 500 steps, 100 test examples, batch 8; 8 runs, scores",
        "fit with bands, s": seconds,
        "what-if, s": whole,
        "its two simulations, s": alone,
        "ratio": whole / alone,
    }
    write("whatif", {"A what-if with bands and verdict": pd.DataFrame([row])}, [], started)


if __name__ == "__main__":
    main()
