"""From one recorded run to answered what-ifs at n = 1000 to 10 000 training examples: seconds, memory, disk.

    OMP_NUM_THREADS=1 python analysis/benchmarks/scale.py FOLDER [--sizes 1000 3000 10000] [--verify 3000]
        [--store-only 30000] [--peers] [--tables] [--later FOLDER]

A causal language model of 4.9 million parameters, pretrained here on made-up texts, is fine-tuned on n texts
of 128 tokens about twenty new topics, for one epoch in batches of 8, with 100 test examples. Stages, each in
a process of its own: record one run with evaluations within a tenth of training's time, write the store of
gradients, score the tests from it, fit the default simulator with these scores, rank all n training examples
to first order, answer ten what-ifs. Three of them are verified by retraining at one size. `--peers` adds
EK-FAC side by side with kronfluence, and stores with bergson (scale_peers.py).

Seconds are of CPU time, since others may use the machine; their unit is a forward and backward pass over the
same n examples, measured in the same process just before. FOLDER keeps what each stage made, so that the
script goes on where it was cut off; `--tables` runs nothing; `--later` adds stages that another version of
the package was measured with, by scale_stages.py. Writes scale.csv, scale.md and scale.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import scale_on_paper as paper
from common import FOLDER, environment, write
from scale_stages import MEASURED, STAGES, WITHOUT_MODEL
from scale_texts import pretrain

mpl.use("Agg")
import matplotlib.pyplot as plt

MOST_PASSES, MOST_SLOPE, MOST_MEMORY = 3.0, 1.1, 1000.0
"""To reach: passes of the store, slopes of log time by log n, MB beside the model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--verify", type=int, help="the size at which three what-ifs are retrained")
    parser.add_argument("--store-only", type=int, help="a size of which only the store is written")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--tables", action="store_true", help="only write what was measured before")
    parser.add_argument("--later", type=Path, help="a folder of stages of a later version of the package")
    options = parser.parse_args()
    given = (str(options.folder), str(options.later))
    sys.argv[1:] = ["FOLDER" if argument in given else argument for argument in sys.argv[1:]]
    started = environment()
    if not options.tables:
        pretrain(options.folder / "model")
        for n in options.sizes:
            for stage in MEASURED:
                script("scale_stages.py", stage, n, options.folder)
        if options.verify:
            for stage in ("retrain", "verify"):
                script("scale_stages.py", stage, options.verify, options.folder)
        if options.store_only:
            script("scale_stages.py", "store", options.store_only, options.folder)
        if options.peers and not (options.folder / "peers.json").exists():
            script("scale_peers.py", options.folder)
    report(options.folder, options.later, started)


def script(name: str, *arguments: object) -> None:
    """Run a script in a process of its own, on one thread."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    subprocess.run(command, env=os.environ | threads, check=True)


def measurements(folder: Path) -> dict[int, dict[str, Any]]:
    """n → stage → what it took."""
    found = {
        int(place.name.removeprefix("n-")): {
            stage: json.loads(file.read_text())
            for stage in STAGES
            if (file := place / f"{stage}.json").exists()
        }
        for place in folder.glob("n-*")
    }
    return {n: stages for n, stages in sorted(found.items()) if stages}


def report(folder: Path, later: Path | None, started: dict[str, str]) -> None:
    found = measurements(folder)
    frame = stages_table(found)
    sections = {"Stages": frame, "Slopes": slopes(frame), "To reach": goals(found, frame)}
    if later is not None:
        sections["Measured again, by a later version"] = stages_table(measurements(later))
    for n, stages in found.items():
        if "verify" in stages:
            sections[f"What-ifs retrained, n {n}"] = pd.DataFrame(stages["verify"]["rows"])
    if (file := folder / "peers.json").exists():
        about = json.loads(file.read_text())
        sections[
            f"Beside kronfluence and bergson: {about['train']} training and {about['test']} test examples,"
            f" {about['parameters'] / 1e6:.1f} million parameters"
        ] = pd.DataFrame(about["rows"])
    sections["On paper: a billion parameters, 100 000 examples of 512 tokens"] = on_paper(found)
    write("scale", sections, NOTES, started)
    draw(frame).savefig(FOLDER / "scale.png", dpi=150)


def stages_table(found: dict[int, dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for n, stages in found.items():
        for stage, took in stages.items():
            if stage not in MEASURED:
                continue
            rows.append(
                {
                    "n": n,
                    "stage": stage,
                    "seconds": took["CPU seconds"],
                    "passes": took["CPU seconds"] / took["pass, CPU seconds"],
                    "memory MB": took["memory"],
                    "disk MB": took.get("disk", np.nan),
                    "a pass, seconds": took["pass, CPU seconds"],
                    "note": said(stage, took),
                }
            )
    return pd.DataFrame(rows)


def said(stage: str, took: dict[str, Any]) -> str:
    if stage == "record":
        after = took["loss"] - took["lowered"]
        return f"{took['evaluations']} evaluations; mean loss {took['loss']:.3f} → {after:.3f}"
    if stage == "fit":
        return f"{took['taken']}, explained {took['explained']:.2f}"
    return ""


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """Of log seconds, log passes, log memory by log n, by least squares, for each stage."""
    rows = []
    for stage, of in frame.groupby("stage", sort=False):
        if len(of) > 1:
            seconds, memory = (
                np.polyfit(np.log(of["n"]), np.log(np.maximum(of[name], 1e-3)), 1)[0]
                for name in ("seconds", "memory MB")
            )
            sizes = ", ".join(map(str, of["n"]))
            rows.append({"stage": stage, "n": sizes, "seconds": seconds, "memory": memory})
    return pd.DataFrame(rows)


def goals(found: dict[int, dict[str, Any]], frame: pd.DataFrame) -> pd.DataFrame:
    rows = []

    def goal(what: str, most: float, value: float) -> None:
        rows.append({"to reach": what, "at most": most, "found": value, "reached": value <= most})

    for n, stages in found.items():
        of = frame[frame["n"] == n].set_index("stage")
        if "store" in stages:
            goal(f"store, n {n}, passes", MOST_PASSES, of.loc["store", "passes"])
        if "rank" in stages:
            both = of.loc[["fit", "rank"], "passes"].sum()
            goal(f"fit and rank, n {n}, passes", 1.0, both)
    goal("memory beside the model, MB, of all", MOST_MEMORY, frame["memory MB"].max())
    steepest = slopes(frame)
    if len(steepest):
        goal("slope of seconds, of all stages", MOST_SLOPE, steepest["seconds"].max())
    return pd.DataFrame(rows)


def on_paper(found: dict[int, dict[str, Any]]) -> pd.DataFrame:
    """From the largest size of which all is known."""
    n = max(n for n, stages in found.items() if "what-ifs" in stages)
    stages = found[n]
    record, store = (
        stages[stage]["CPU seconds"] / stages[stage]["pass, CPU seconds"] for stage in ("record", "store")
    )
    seconds = {stage: stages[stage]["CPU seconds"] / n for stage in WITHOUT_MODEL}
    return paper.estimate(record - 1, store * n / paper.traced(n), seconds)


MEMORY = ", ".join(f"{part} {size:.0f} GB" for part, size in paper.memory().items())
ASIDES = (
    "Of n 30 000 there is the store alone. The stages were run one by one, and stores, fits and what they"
    " answer again after the package had changed; the sizes overlapped in time on two cores.",
    "What was verified is of one run with few evaluations, whose scores explain little of it, so that"
    " changes are predicted too small; of the order of topics the simulator knows nothing.",
)
BREAKS = (
    "Where it would break first: Adam's sizes are sums and squares in float32, 8 bytes a parameter beside the"
    " model's own 2, and every process has a whole model. One GPU of 80 GB is full at about 7 billion"
    " parameters, and a model that is spread over several has no store yet. Before that, a sketch in Adam's"
    " metric reads and writes every number of an example's gradient some five times, and waits for the GPU's"
    " memory nearly as long as 512 tokens compute. Scores [train, test] are refused above 1 GB, which is 2500"
    " test examples for 100 000. Of eight processes one makes the landmarks' basis, and the others wait."
)
NOTES = [
    "A pass is a forward and backward pass over the same n examples in batches of 8, from 24 or 96 of them"
    " measured in the same process just before and after; seconds are of CPU time, on one thread.",
    "Memory is the most resident memory beyond that of the process with the model and the texts, a pass"
    " included, sampled every 50 ms.",
    "Slopes are of log by log n, by least squares over the sizes.",
    "What-ifs that were retrained: leave out topic-03; the twenty topics one after the other; topic-08 three"
    " times. Predicted and retrained are mean changes of the final loss over the 100 test examples, Pearson"
    " and sign are over the changes of single ones.",
    f"On paper: 6 operations a parameter and token, 40 % of 989 TFLOP/s, {paper.PRICE} dollars an hour of a"
    " GPU (an assumption); passes and seconds an example as at the largest size measured. Memory beside the"
    f" model while the store is written, by the formula of `simfluence gradients`: {MEMORY}.",
    BREAKS,
    *ASIDES,
]


def draw(frame: pd.DataFrame) -> plt.Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, column, unit in ((axes[0], "seconds", "seconds of one core"), (axes[1], "memory MB", "MB")):
        for stage, of in frame.groupby("stage", sort=False):
            axis.plot(of["n"], np.maximum(of[column], 0.1), marker="o", markersize=4, label=stage)
        sizes = sorted(frame["n"].unique())
        axis.set(xscale="log", yscale="log", xlabel="n, training examples", ylabel=unit)
        axis.set_xticks(sizes, [f"{n:,}".replace(",", " ") for n in sizes])
        axis.minorticks_off()
    of_pass = frame.groupby("n")["a pass, seconds"].median()
    axes[0].plot(of_pass.index, of_pass, color="black", linestyle="--", label="a pass")
    axes[1].axhline(MOST_MEMORY, color="grey", linewidth=0.8)
    axes[0].set_title("time")
    axes[1].set_title("memory beside the model")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
