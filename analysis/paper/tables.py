"""The benchmark's main tables, from the committed recordings and scores.

    python analysis/paper/tables.py [--sets copa-ia3 …] [--processes 2]

Writes into analysis/results/paper/, each as .md, .csv and .tex (booktabs):

    main-<set>      every method on one run set: errors, ranks, skill, cautions (fewer on more_sets.py's)
    compared-<set>  paired differences from the linear simulator, Holm-adjusted
    fine_tuning     task × kind of fine-tuning × simulator, as the literature prints it, and as published
    overview        skill of the main methods by task
    skill           skill of every method on every set
    beats           on how many sets one method is better than another, and significantly so
    accuracy        of the models before and after training

and simfluence/evaluation/results.csv, which `simfluence.evaluation.get_results` reads.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from methods import methods
from protocol import CELLS, RESULTS, ROOT, RUNS, SETS, TRAIN, VALIDATION, recorded_and_scored
from statsmodels.stats.multitest import multipletests

from simfluence.attribution import InfluenceScores
from simfluence.evaluation import (
    Benchmark,
    Method,
    benchmark,
    paired_differences,
    score_methods,
    simulator_methods,
    summary,
    write_table,
)
from simfluence.evaluation.tables import COLUMNS, NOTE, WHY_OFF_SCALE, cell, off_scale
from simfluence.report import COMPARISON_NOTE, compared
from simfluence.runs import RunSet
from simfluence.simulators import AutoSimulator

AGAINST = "linear"
OURS = "ours, 20 runs"
DASH = "–: what is predicted alike for all runs has no rank across runs."
MARKOV = ("additive", "multiplicative", "linear")
SHIPPED = ROOT / "simfluence" / "evaluation" / "results.csv"


def recorded(name: str) -> RunSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RunSet.load(RUNS / name)


def cells_of(name: str) -> Benchmark:
    """Every method on one run set. The first run was scored, and trains with the others."""
    runs = recorded(name)
    rows = methods(RUNS / name, runs)
    return benchmark(runs, rows, train=TRAIN, validation=VALIDATION, progress=False, folder=CELLS)


MORE = {"facts-gpt": 16, "large": 8}
"""Sets recorded by more_sets.py → how many of their runs train; the others test."""


def cells_of_more(name: str) -> Benchmark:
    """Simulators alone and with the scores that lie beside the set."""
    runs, train = recorded(name), MORE[name]
    file = RUNS / name / "scores.safetensors"
    named = {one: {"name": one} for one in MARKOV}
    scores = InfluenceScores.load(file)
    rows = [
        *score_methods([file], runs),
        *simulator_methods(named),
        Method("ours, 1 run and scores", partial(AutoSimulator, scores), 1, key="ours, scores"),
        Method(f"ours, {train} runs", AutoSimulator, key="ours"),
        Method(f"ours, {train} runs and scores", partial(AutoSimulator, scores), key="ours, scores"),
    ]
    return benchmark(runs, rows, train=train, validation=0, progress=False, folder=CELLS)


def write_main(name: str, found: Benchmark) -> None:
    """The table of one set, and how each method differs from the linear simulator."""
    notes = [NOTE, DASH, *([WHY_OFF_SCALE] if off_scale(found.of_runs) else []), protocol_of(name)]
    write_table(found.table(), RESULTS, f"main-{name}", *notes)
    write_table(compared(found, AGAINST), RESULTS, f"compared-{name}", f"Less {AGAINST}. {COMPARISON_NOTE}")


def protocol_of(name: str) -> str:
    """How a set was recorded, in a sentence."""
    runs = recorded(name)
    config = runs[0].config
    tests = len(runs) - TRAIN - VALIDATION
    return (
        f"{name}: MiniLM-L6 (22.7M parameters), {len(runs)} runs of {len(runs[0])} steps, batch"
        f" {config['run']['design']['batch_size']}, AdamW at {config['run']['optimizer']['lr']:g}; fitted to"
        f" {TRAIN} runs, validated on {VALIDATION}, tested on {tests}; {len(runs.train)} training,"
        f" {len(runs.test)} test examples. Scores: one run's weights, of the set's first run."
    )


def fine_tuning(found: dict[str, Benchmark]) -> pd.DataFrame:
    """Task × kind of fine-tuning × simulator: all-steps MSE and final-step ρ, ours and as published."""
    rows = []
    for name, one in found.items():
        task, tuning = name.split("-", 1)
        frame = summary(one.of_runs).set_index(["method", "metric"])
        for method in ("mean_trajectory", "TracIn-CP, 10 checkpoints, calibrated", *MARKOV, OURS):
            mse, rank = (frame.loc[(method, metric)] for metric in ("mse", "final_spearman"))
            rows.append(
                (
                    task,
                    tuning,
                    "MiniLM, here",
                    method,
                    cell(*mse[["mean", "spread"]]),
                    cell(*rank[["mean", "spread"]]),
                )
            )
    published = pd.read_csv(Path(__file__).parent / "published.csv")
    for row in published.itertuples():
        cells = cell(row.mse, row.mse_sd), cell(row.spearman, row.spearman_sd)
        rows.append((row.task, row.tuning, f"{row.model}, as published", row.method, *cells))
    columns = ["task", "fine-tuning", "model", "method", COLUMNS["mse"], COLUMNS["final_spearman"]]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["task", "fine-tuning"], kind="stable").set_index("task")


def skills(found: dict[str, Benchmark]) -> pd.DataFrame:
    """Method × set: skill ± standard error."""
    columns = {}
    for name, one in found.items():
        frame = summary(one.of_runs).query("metric == 'skill'").set_index("method")
        cells = pd.Series({m: cell(row["mean"], row["spread"]) for m, row in frame.iterrows()})
        cells[off_scale(one.of_runs)] = "off scale"
        columns[name] = cells
    return pd.DataFrame(columns).fillna("– (not computed)").rename_axis("method")


SHOWN = {
    "TracIn-CP, 10 checkpoints, as is": "TracIn-CP, 10 checkpoints, as it is",
    "TracIn-CP, 10 checkpoints, calibrated": "TracIn-CP, 10 checkpoints, calibrated",
    "EK-FAC influence, calibrated": "EK-FAC influence, calibrated",
    "TRAK, calibrated": "TRAK, calibrated",
    "representation, calibrated": "similarity of representations, calibrated",
    "BM25, calibrated": "BM25, calibrated",
    "TracIn, weights of the time, kernel": "TracIn as the kernel of training dynamics",
    "additive": "additive (Simfluence)",
    "multiplicative": "multiplicative (Simfluence)",
    "linear": "linear (Simfluence)",
    "ours, 1 run and scores": "ours, from 1 run and scores",
    "ours, 8 runs": "ours, from 8 runs",
    "ours, 20 runs": "ours, from 20 runs",
    "ours, 20 runs and scores": "ours, from 20 runs and scores",
}
"""Rows of the overview → what they are called there."""
LEAST = -9.99
"""Skill below this is shown as this."""


def overview(found: dict[str, Benchmark]) -> pd.DataFrame:
    """Method × task: skill, median (lowest … highest) over kinds of fine-tuning; ρ, median over all sets."""
    frame = shipped(found).assign(task=lambda rows: rows["set"].str.split("-").str[0])
    rows = {}
    for method, called in SHOWN.items():
        mine = frame[frame["method"] == method]
        row = {}
        for task in dict.fromkeys(frame["task"]):
            skill = mine[(mine["task"] == task) & (mine["metric"] == "skill")]["mean"].clip(lower=LEAST)
            row[f"{task}: skill"] = f"{skill.median():.2f} ({skill.min():.2f} … {skill.max():.2f})"
        for metric in ("final_spearman", "across_runs_spearman"):
            row[COLUMNS[metric]] = f"{mine[mine['metric'] == metric]['mean'].median():.2f}"
        rows[called] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


PAIRS = (
    ("linear", "TracIn-CP, 10 checkpoints, as is"),
    ("linear", "TracIn-CP, 10 checkpoints, calibrated"),
    ("linear", "additive"),
    (OURS, "linear"),
    (OURS, "TracIn-CP, 10 checkpoints, calibrated"),
    ("ours, 1 run and scores", "linear"),
    ("EK-FAC influence, kernel", "EK-FAC influence, calibrated"),
)


def beats(found: dict[str, Benchmark]) -> pd.DataFrame:
    """Of two methods, on how many sets the first is better, and how often that is no chance."""
    rows = []
    for first, second in PAIRS:
        row = {"method": first, "against": second}
        for metric in ("mse", "final_spearman"):
            compared = [
                paired_differences(one.of_runs, second, metric).set_index("method").loc[first]
                for one in found.values()
            ]
            sign = -1 if metric == "mse" else 1
            better = np.array([sign * one["difference"] > 0 for one in compared])
            surely = multipletests([one["p"] for one in compared], alpha=0.05, method="holm")[0]
            row[f"{COLUMNS[metric]}: better"] = f"{better.sum()} of {len(compared)}"
            row[f"{COLUMNS[metric]}: surely better, surely worse"] = (
                f"{(surely & better).sum()}, {(surely & ~better).sum()}"
            )
        rows.append(row)
    return pd.DataFrame(rows).set_index("method")


def accuracies(names: list[str]) -> pd.DataFrame:
    """Of test examples answered rightly, before and after training; chance is said to be chance."""
    rows = []
    for name in names:
        runs = recorded(name)
        before, after = (
            np.stack([run.metrics["accuracy"][step] for run in runs]).mean(1) for step in (0, -1)
        )
        n = len(runs.test)
        chance = np.sqrt(0.25 / n)  # the standard error of guessing between two answers
        rows.append(
            {
                "set": name,
                "rate": f"{runs[0].config['run']['optimizer']['lr']:g}",
                "before": f"{before.mean():.2f}",
                "after (mean ± sd over runs)": cell(after.mean(), after.std(ddof=1)),
                "beyond chance": "yes" if after.mean() > 0.5 + 2 * chance else "no: at chance",
            }
        )
    return pd.DataFrame(rows).set_index("set")


def shipped(found: dict[str, Benchmark]) -> pd.DataFrame:
    """Every method's mean and spread on every set, as numbers."""
    frames = [summary(one.of_runs).assign(set=name) for name, one in found.items()]
    return pd.concat(frames)[["set", "method", "metric", "mean", "spread", "n"]]


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--sets",
        nargs="+",
        default=[name for name in SETS if recorded_and_scored(name)],
    )
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    cells = Parallel(n_jobs=options.processes)(delayed(cells_of)(name) for name in options.sets)
    found = dict(zip(options.sets, cells, strict=True))
    for name, one in found.items():
        write_main(name, one)
    for name in MORE:
        one = cells_of_more(name)
        said = f"{name}: see more_sets.md; fitted to {MORE[name]} runs."
        write_table(one.table(), RESULTS, f"main-{name}", NOTE, DASH, said)
    missing = [name for name in SETS if name not in options.sets]
    said = f"Not recorded here, for want of processor time: {', '.join(missing)}." if missing else ""
    write_table(fine_tuning(found), RESULTS, "fine_tuning", NOTE, *([said] if said else []))
    write_table(skills(found), RESULTS, "skill", NOTE)
    said = (
        f"Skill: median (lowest … highest) over {len(options.sets)} sets of a task's kinds of fine-tuning;"
        f" below {LEAST} it is shown as that. ρ: medians over all sets."
    )
    write_table(overview(found), RESULTS, "overview", said)
    said = "Surely: p < 0.05 of the paired difference, after Holm's adjustment over the sets of a row."
    write_table(beats(found), RESULTS, "beats", said)
    said = f"Over {len(recorded(options.sets[0]).test)} test examples."
    write_table(accuracies(options.sets), RESULTS, "accuracy", said)
    shipped(found).to_csv(SHIPPED, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main()
