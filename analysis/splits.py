"""Skill of ``auto`` on random splits of a run set, where one draw of ten held-out runs decides little.

    python analysis/splits.py copa-minilm-high-rate [set ...] [--size 20] [--splits 6] [--workers 2]

Of each shuffled order of the runs the first ``--size`` train and the next twelve are held out. Writes
analysis/results/splits.csv, a row a set, simulator and split; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
from simulators import RESULTS, measure, read_scores, simulators

from simfluence.runs import RunSet

HELD_OUT = 12
KEYS = ["set", "simulator", "training runs", "split"]


def compared(folder: Path) -> list[str]:
    """``auto`` without and with the scores that lie beside a set, and their training dynamics alone."""
    kinds = read_scores(folder)
    return ["auto", *[f"auto, {kind}" for kind in kinds], *[f"{kind}, dynamics" for kind in kinds]]


def split_row(key: tuple[str, str, int, int]) -> dict[str, object]:
    """One row."""
    folder, simulator, size, split = key
    runs, make = RunSet.load(Path("runs") / folder), simulators(read_scores(Path("runs") / folder), True)
    order = np.random.default_rng(split).permutation(len(runs))
    train, test = runs[np.sort(order[:size])], runs[np.sort(order[size:][:HELD_OUT])]
    measured = measure(make[simulator], train, test)
    found = {name: float(np.nanmean(measured[name])) for name in ("skill", "across-runs Spearman")}
    return dict(zip(KEYS, key, strict=True)) | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--size", type=int, default=20)
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for folder in options.sets:
        if options.size >= (count := len(RunSet.load(Path("runs") / folder))):
            parser.error(
                f"--size {options.size} leaves none of the {count} runs of runs/{folder} to hold out"
            )
    file = RESULTS / "splits.csv"
    frame = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=KEYS)
    done = set(frame[KEYS].itertuples(index=False, name=None))
    wanted = [
        (folder, simulator, options.size, split)
        for folder in options.sets
        for split in range(options.splits)
        for simulator in compared(Path("runs") / folder)
    ]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for row in pool.imap(split_row, [key for key in wanted if key not in done]):
            frame = pd.DataFrame([*frame.to_dict("records"), row])
            frame.to_csv(file, index=False, float_format="%.5g")
            print(row, flush=True)
    print(
        frame.groupby(KEYS[:3], sort=False)[["skill", "across-runs Spearman"]]
        .agg(["mean", "sem", "count"])
        .to_string()
    )


if __name__ == "__main__":
    main()
