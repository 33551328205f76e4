"""Simulators by what they need: runs, losses at every step or fewer, attribution scores, seconds.

    python analysis/paper/needs.py [--measure copa-ia3 …] [--processes 2]

Writes needs (.md, .csv, .tex) and the figures learning and cost (.png, .pdf) into analysis/results/paper/.
With --measure the seconds of fits on these sets are measured again, in one process on an otherwise quiet
machine (three minutes for three sets), and kept in data/seconds.csv.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from figures import COLOURS
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from methods import NEEDED, what_they_need
from protocol import CELLS, RESULTS, RUNS, SETS, TRAIN, VALIDATION, recorded_and_scored
from shown import save_figure
from tables import recorded

from simfluence.evaluation import Benchmark, benchmark, summary, write_table
from simfluence.report import seconds_of_a_run

SECONDS = RESULTS / "data" / "seconds.csv"
WORST = -1.0
"""Skill below this counts as this in means over sets: one rollout that blows up must not decide them."""


def cells_of(name: str, keep: bool = True) -> Benchmark:
    rows = [method for some in what_they_need(RUNS / name).values() for method in some]
    folder = CELLS if keep else None
    return benchmark(recorded(name), rows, train=TRAIN, validation=VALIDATION, progress=False, folder=folder)


def measure(names: list[str]) -> None:
    """The seconds of every cell, and of training a run again."""
    frames = []
    for name in names:
        cells = cells_of(name, keep=False).of_cells[["fit_seconds", "answer_seconds"]]
        frames.append(cells.assign(set=name, run_seconds=seconds_of_a_run(RUNS / name)))
    SECONDS.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).to_csv(SECONDS, float_format="%.3g", lineterminator="\n")


def table(skill: pd.DataFrame, rank: pd.DataFrame) -> pd.DataFrame:
    """One row what is given: skill over sets, and seconds. skill, rank : [method, set]."""
    seconds = pd.read_csv(SECONDS).groupby("method").median(numeric_only=True)
    rows = {}
    for method in skill.index:
        of_sets = skill.loc[method].clip(lower=WORST)
        rows[method] = {
            "skill, median over sets": f"{of_sets.median():.3f}",
            "lowest, highest": f"{skill.loc[method].min():.3g}, {of_sets.max():.3f}",
            "sets above 0": f"{(of_sets > 0).sum()} of {len(of_sets)}",
            "final-step ρ, median": f"{rank.loc[method].median():.3f}",
            "seconds to fit": f"{seconds['fit_seconds'].get(method, np.nan):.2g}",
            "to answer": f"{seconds['answer_seconds'].get(method, np.nan):.2g}",
            "to train again": f"{seconds['run_seconds'].get(method, np.nan):.3g}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("simulator and what it is given")


def learning(skill: pd.DataFrame) -> Figure:
    """Skill against the number of runs: thin lines are sets, thick ones medians."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for colour, (simulator, scores) in zip(COLOURS, KINDS, strict=False):
        names = [name_of(simulator, scores, size) for size in NEEDED]
        of_sets = skill.loc[names].clip(lower=WORST)
        axis.plot(NEEDED, of_sets, color=colour, lw=0.6, alpha=0.4)
        label = simulator + (" and scores at the start" if scores else "")
        axis.plot(NEEDED, of_sets.median(axis=1), color=colour, lw=2.2, marker="o", label=label)
    axis.axhline(0, color="#BBBBBB", lw=0.8)
    axis.set(
        xscale="log", xlabel="recorded runs that the simulator is fitted to", ylabel="skill on held-out runs"
    )
    axis.minorticks_off()
    axis.set_xticks(NEEDED, [str(size) for size in NEEDED])
    axis.set_title(f"{skill.shape[1]} sets; skill below {WORST:g} drawn at {WORST:g}", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    return figure


KINDS = (("linear", ""), ("ours", ""), ("ours", " and scores"))


def name_of(simulator: str, scores: str, size: int) -> str:
    return f"{simulator}, {size} run{'s' * (size > 1)}{scores}"


def cost(skill: pd.DataFrame) -> Figure:
    """Quality against what it takes: seconds of recording and fitting, beside training again."""
    seconds = pd.read_csv(SECONDS).groupby("method").median(numeric_only=True)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for colour, (simulator, scores) in zip(COLOURS, KINDS, strict=False):
        names = [name_of(simulator, scores, size) for size in NEEDED]
        known = [name for name in names if name in seconds.index]
        spent = [
            seconds.loc[name, "fit_seconds"] + size * seconds.loc[name, "run_seconds"]
            for name, size in zip(names, NEEDED, strict=True)
            if name in known
        ]
        axis.plot(
            spent,
            skill.loc[known].clip(lower=WORST).median(axis=1),
            "o-",
            color=colour,
            label=simulator + scores,
        )
    axis.axhline(0, color="#BBBBBB", lw=0.8)
    axis.set(
        xscale="log",
        xlabel="seconds to record the runs (busy machine) and to fit, without scores",
        ylabel="skill on held-out runs (median)",
    )
    axis.minorticks_off()
    axis.set_xticks([30, 100, 300, 1000], ["30", "100", "300", "1000"])
    axis.set_title(f"a point a number of runs: {', '.join(map(str, NEEDED))}", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", nargs="+", metavar="SET")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    names = [name for name in SETS if recorded_and_scored(name)]
    if options.measure:
        measure(options.measure)
    found = Parallel(n_jobs=options.processes)(delayed(cells_of)(name) for name in names)
    frame = pd.concat([summary(one.of_runs).assign(set=name) for name, one in zip(names, found, strict=True)])
    order = frame["method"].unique()
    skill, rank = (
        frame[frame["metric"] == metric].pivot_table("mean", "method", "set").loc[order]
        for metric in ("skill", "final_spearman")
    )
    said = (
        f"Over {len(names)} sets. Losses are known after every step where nothing else is said. Scores:"
        " gradients in the optimizer's metric at the initial weights. Seconds: medians over"
        f" {', '.join(sorted(pd.read_csv(SECONDS)['set'].unique()))}, one process on one core;"
        " runs were recorded on a busy machine."
    )
    write_table(table(skill, rank), RESULTS, "needs", said)
    save_figure(learning(skill), "learning")
    save_figure(cost(skill), "cost")


if __name__ == "__main__":
    main()
