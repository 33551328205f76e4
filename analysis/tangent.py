"""Simulators that know Jacobians: held-out skill with tangents at the initial weights and along runs.

    python analysis/tangent.py set [set ...] [--runs 0|4] [--sizes 2 8 20] [--cache folder]

Makes the tangents by training the named sets' first runs again (JSONL tasks must be found from where this
is called), keeps them in the cache, and scores as analysis/simulators.py does: the last ten runs are held
out, the first ones train. Writes analysis/results/simulators_scores.csv (columns of simulators.csv) after
every fit; rows that are there already are left.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from simulators import ASIDE, COLUMNS, RESULTS, about, fingerprint, measure, summary

from simfluence.finetuning.linearise import linearise_runs
from simfluence.runs import RunSet
from simfluence.simulators import AutoSimulator, EffectsSimulator, Simulator, Tangent

RUNS = Path(__file__).parents[1] / "runs"
HELD_OUT = 10


def made(runs: RunSet, file: Path, count: int, coordinates: int) -> Tangent:
    """The tangent of the first ``count`` runs, or of the initial weights for 0."""
    if file.exists():
        return Tangent.load(file)
    start = time.perf_counter()
    found = linearise_runs(runs, count, coordinates=coordinates)
    print(f"{file.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    found.save(file)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--runs", type=int, nargs="+", default=[0, 4], help="runs to take Jacobians along")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 8, 20])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "simfluence" / "tangents")
    options = parser.parse_args()
    table = RESULTS / "simulators_scores.csv"
    for name in options.sets:
        runs = RunSet.load(RUNS / name)
        test = runs[len(runs) - HELD_OUT :]
        for count in options.runs:
            sizes = [size for size in options.sizes if size >= count]
            coordinates = 10_000 if count else 20_000
            of = made(runs, options.cache / f"{name}-{count}.safetensors", count, coordinates)
            where = f"along {count} runs" if count else "at the initial weights"
            for size in sizes:
                simulators: dict[str, Callable[[], Simulator]] = {
                    f"tangent {where}": lambda of=of: EffectsSimulator(
                        tangent=of, penalty=np.inf, link="log_odds"
                    ),
                    f"auto, tangent {where}": lambda of=of: AutoSimulator(tangent=of),
                }
                for simulator, make in simulators.items():
                    row(table, name, runs, size, test, simulator, make)


def row(
    table: Path,
    name: str,
    runs: RunSet,
    size: int,
    test: RunSet,
    simulator: str,
    make: Callable[[], Simulator],
) -> None:
    """Measure one simulator and add it to the table, unless it is there."""
    frame = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=COLUMNS + ASIDE)
    there = (frame["set"] == name) & (frame["simulator"] == simulator)
    if (there & (frame["training runs"].astype(int) == size)).any():
        return
    measured = measure(make, runs[:size], test)
    key = {**about(runs, RUNS / name), "simulator": simulator, "training runs": size}
    mark = {"set": name, "fingerprint": fingerprint(runs, HELD_OUT, None)}
    new = pd.DataFrame(
        [{**key, "metric": metric, **summary(values), **mark} for metric, values in measured.items()]
    )
    frame = new if frame.empty else pd.concat([frame, new], ignore_index=True)
    frame.to_csv(table, index=False, float_format="%.6g")
    skill, across = (summary(measured[m])["mean"] for m in ("skill", "across-runs Spearman"))
    print(f"{name:28} {size:3} {simulator:40} {skill:+.3f} {across:+.3f}", flush=True)


if __name__ == "__main__":
    main()
