"""Attribution scores of the benchmark's run sets, at the weights of each set's first run.

    python analysis/paper/scores.py DATA [--sets copa-ia3 …]

Writes runs/paper/<set>/scores/<name>.safetensors, [train, test] or, along the run, [step, train, test]; what
is there is not computed again. "gradient_dot_along" serves four methods: TracIn-CP over ten checkpoints,
TracIn with the weights of the time, and gradient dot products at the start and at the end (tables.py takes
them from it). Where all parameters are trained, weights were kept after ten steps only.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from protocol import RUNS, SETS

from simfluence.attribution import AttributionContext, InfluenceScores, along_run, attribute
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.recording.weights import weight_steps
from simfluence.runs import RunSet

ALONG = 8
"""Every so many steps, where weights were kept after all of them."""

Score = Callable[[AttributionContext], InfluenceScores]


def once(name: str) -> Score:
    return lambda context: attribute(context, name)


def along(name: str) -> Score:
    return lambda context: along_run(context, name)


METHODS: dict[str, tuple[str, Score]] = {
    "bm25": ("end", once("bm25")),
    "representation": ("end", once("representation")),
    "gradient_cosine": ("end", once("gradient_cosine")),
    "gradient_dot_along": ("along", along("gradient_dot")),
    "gradient_step": ("start", once("gradient_step")),
    "ekfac": ("end", once("ekfac")),
    "influence": ("end", once("influence")),
    "trak": ("end", once("trak")),
}
"""File → the steps whose weights it takes, and how it is computed."""


def steps_of(kept: list[int], last: int) -> dict[str, list[int]]:
    """The steps by the names that METHODS has for them."""
    if len(kept) > last:  # after every step
        return {"end": [last], "along": kept[::ALONG], "start": [0]}
    return {"end": [last], "along": [0, *kept], "start": [0]}


def main() -> None:
    """Compute what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    options = parser.parse_args()
    os.chdir(options.data)
    for name in options.sets:
        folder = RUNS / name
        run = RunSet.load(folder)[0]
        steps = steps_of(sorted(weight_steps(folder / run.id)), len(run))
        (folder / "scores").mkdir(exist_ok=True)
        for method, (which, compute) in METHODS.items():
            file = folder / "scores" / f"{method}.safetensors"
            if file.exists():
                continue
            start = time.perf_counter()
            found = compute(recorded_context(folder, run, steps[which]))
            replace(found, scores=found.scores.astype(np.float32)).save(file)
            print(f"{name}: {method}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
