"""Fitting on a GPU against the same fits on the machine's processor, by the same code.

Equal answers are asserted before anything is timed. ``--large`` adds the case of 10 000 examples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from common import environment, made_up_runs, side_by_side, write

from simfluence import AdditiveSimulator, LinearSimulator, RunSet
from simfluence.simulators.markov.simulator import MarkovSimulator

GRID = [float(p) for p in 10.0 ** np.arange(-4, 6)]


def cases(large: bool) -> list[tuple[str, RunSet, Callable[[str], MarkovSimulator]]]:
    """(what, recorded runs, the simulator for a device)"""
    first, second = made_up_runs(200, 64, 20, 300), made_up_runs(1000, 64, 20, 1000)
    few, wide = made_up_runs(1000, 64, 4, 300), made_up_runs(5000, 64, 20, 1000)
    found: list[tuple[str, RunSet, Callable[[str], MarkovSimulator]]] = [
        ("n 200, 64 tests, 20 × 300", first, _linear(penalty=1.0)),
        ("n 1000, 64 tests, 20 × 1000", second, _linear(penalty=1.0)),
        ("the same, pooled", second, _linear(penalty=1.0, center="pooled")),
        ("the same, factorized", second, _linear(penalty=1.0, solver="cholesky")),
        ("n 1000, 64 tests, 4 × 300, dual", few, _linear(penalty=1.0, solver="cholesky")),
        ("n 5000, 64 tests, 20 × 1000, additive", wide, lambda d: AdditiveSimulator(penalty=1.0, device=d)),
        ("n 200, ten λ × 5 folds", first, _linear(penalties=GRID)),
        ("n 1000, ten λ × 5 folds", second, _linear(penalties=GRID)),
    ]
    if large:
        found.append(
            ("n 10 000, 256 tests, 32 × 2500", made_up_runs(10_000, 256, 32, 2500), _linear(penalty=1.0))
        )
    return found


def _linear(**options) -> Callable[[str], MarkovSimulator]:
    return lambda device: LinearSimulator(device=device, **options)


def compare(what: str, runs: RunSet, simulator: Callable[[str], MarkovSimulator], repeats: int) -> dict:
    here, there = (simulator(device).fit(runs) for device in ("cpu", "cuda"))
    difference = max(np.abs(a - b).max() for a, b in ((here.A_, there.A_), (here.B_, there.B_)))
    assert difference < 1e-8, (what, difference)
    assert here.penalty_ == there.penalty_, (what, here.penalty_, there.penalty_)
    torch.cuda.reset_peak_memory_stats()
    ours, theirs = side_by_side(
        lambda: simulator("cuda").fit(runs), lambda: simulator("cpu").fit(runs), repeats=repeats
    )
    return {
        "case": what,
        "GPU s": ours[0],
        "CPU s": theirs[0],
        "ratio": theirs[0] / ours[0],
        "largest difference": difference,
        "how": f"{there.diagnostics_['solver']}, on the CPU {here.diagnostics_['solver']}",
        "peak GPU memory, GiB": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = {"GPU": torch.cuda.get_device_name(), **environment()}
    rows = []
    for case in cases(options.large):
        rows.append(compare(*case, repeats=options.repeats))
        print(rows[-1], flush=True)
    notes = [
        "Whole fits, from recorded runs to coefficients and diagnostics; medians of alternating repetitions.",
        "The ratio is of the processor's seconds, with the threads above, to the GPU's.",
    ]
    write("gpu", {"Ratios": pd.DataFrame(rows)}, notes, started)


if __name__ == "__main__":
    main()
