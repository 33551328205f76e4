"""Simulators on a bank of recorded regimes whose what-ifs were retrained.

    python analysis/bank.py FOLDER [--only REGIME ...] [--runs 1 4 12] [--simulators NAME ...]
        [--output analysis/results/bank.csv] [--limit 200]

FOLDER holds one .npz file a regime (optimizer, schedule, model, data) and load.py, whose ``load(path)``
reads one and whose docstring says what is in it. Of each regime's 16 runs the first 12 may train and the last
four are held out. The edits are other curricula for held-out runs, and the losses after really training on
them. NAME+scores is a simulator that is given the gradient scores at the shared initial weights; it is left
out for a regime that has none.

There is one row a version, regime, simulator, number of training runs, measure and kind of edit. Rows that
are there are not made again, so that an interrupted run goes on where it was. The measures:

- ``skill``, ``skill at the end``: 1 − MSE / MSE of the mean trajectory of the same training runs, on the
  held-out runs, over all steps with a recorded loss (each run weighs the same), and at the last step alone.
- ``Pearson``, ``Spearman``: correlation over test examples of the predicted and the true change that an edit
  makes to the last loss. The predicted change is the difference of two simulations from the base run's
  initial losses. 0 stands where the same change is predicted for all test examples.
- ``slope``: of the least-squares line of predicted (y) on true (x) changes: 1 for changes of the right size,
  less for smaller ones.
- ``right sign``: 1 if the mean over test examples of the predicted changes has the sign of the true one's.
- ``seconds``: to fit, of one core.
- ``failure``: the first line of the error is in the column ``kind``. To take longer than ``--limit`` seconds
  of one core, for fitting and simulating, is a failure too.

A summary as Markdown is written beside the .csv, to the file of the same name that ends in .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import multiprocessing
import os
import resource
import signal
import subprocess
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from simfluence.curriculum import Curriculum
from simfluence.evaluation import metrics
from simfluence.runs import ExampleTable, RunSet
from simfluence.simulators import Simulator, make_simulator

ROOT = Path(__file__).resolve().parent.parent
SIMULATORS = ["mean_trajectory", "persistence", "linear", "auto", "auto+scores", "dynamics+scores"]
FORMER_NAMES = {"dynamics": "replayed"}  # in versions that do not have the simulator by its present name
HELD_OUT = range(12, 16)
KEYS = ["version", "regime", "simulator", "scores", "runs"]
COLUMNS = [*KEYS, "measure", "kind", "value"]
Row = tuple[str, str, float]
"""Measure, kind of edit (or an error), value."""

# ------------------------------------------------------------------------------ one regime, one simulator


def load(file: Path) -> dict[str, Any]:
    """What the bank's own load.py says of one regime."""
    spec = importlib.util.spec_from_file_location("bank_load", file.parent / "load.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"expected load.py beside {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(file)


def run_set(regime: dict[str, Any]) -> RunSet:
    """A regime's 16 runs, as the recorder would have logged them."""
    given = dict(regime["meta"]["optimizer"])
    optimizer = {"class": given.pop("cls")}
    if optimizer["class"].startswith("Adam"):
        optimizer["betas"] = [0.9, 0.999]  # torch's, unless others are given
    train, test = (
        ExampleTable.of([{"id": row, "group": group} for row, group in enumerate(regime[groups])])
        for groups in ("train_groups", "test_groups")
    )
    losses = [losses[: steps + 1] for losses, steps in zip(regime["losses"], regime["steps"], strict=True)]
    runs = RunSet.from_arrays(
        regime["batches"], losses, train=train, test=test, optimizer=optimizer | given, allow_nonfinite=True
    )
    logged = []
    for run, rates in zip(runs, regime["lr"], strict=True):
        evaluated = np.flatnonzero(np.isfinite(run.loss).any(1))
        metric = {"loss": run.loss[evaluated]}
        rates = rates[: len(run)].astype(np.float64)
        logged.append(dataclasses.replace(run, metrics=metric, evaluated=evaluated, learning_rate=rates))
    return RunSet(logged, train, test)


def make(name: str, scores: np.ndarray | None) -> Simulator:
    """The simulator of that name or, in a version that does not know it, of its former name."""
    params = {} if scores is None else {"scores": scores}
    try:
        return make_simulator(name, **params)
    except ValueError:
        if name not in FORMER_NAMES:
            raise
        return make_simulator(FORMER_NAMES[name], **params)


def measure(file: Path, name: str, with_scores: bool, count: int) -> list[Row]:
    """All measures of one simulator, fitted to the first ``count`` runs of one regime."""
    regime = load(file)
    runs = run_set(regime)
    simulator = make(name, regime["scores"].astype(np.float64) if with_scores else None)
    start = time.process_time()
    simulator.fit(runs[:count])
    seconds = time.process_time() - start
    mean = make("mean_trajectory", None).fit(runs[:count])
    return [("seconds", "", seconds), *skills(simulator, mean, runs), *edits(simulator, regime, runs)]


def skills(simulator: Simulator, mean: Simulator, runs: RunSet) -> list[Row]:
    """Skill on the held-out runs."""
    held_out = runs[HELD_OUT.start : HELD_OUT.stop]
    curricula = held_out.curricula
    true = held_out.loss[:, : 1 + max(len(curriculum) for curriculum in curricula)]
    simulated, baseline = (
        one.simulate(curricula, held_out.initial_loss) for one in (simulator, mean)
    )  # [run, step + 1, test]
    all_steps = [metrics.all_steps_mse(true, losses) for losses in (simulated, baseline)]
    at_the_end = [
        np.square(last(losses, curricula) - last(true, curricula)) for losses in (simulated, baseline)
    ]
    if not np.isfinite([*all_steps, *at_the_end]).all():
        raise ValueError("simulated losses of held-out runs are not finite")
    return [
        ("skill", "", metrics.counterfactual_skill(*all_steps)),
        ("skill at the end", "", metrics.counterfactual_skill(*at_the_end)),
    ]


def edits(simulator: Simulator, regime: dict[str, Any], runs: RunSet) -> list[Row]:
    """How well the changes that edits make are predicted."""
    asked = regime["edits"]
    bases = [runs[edit["base"]] for edit in asked]
    edited = [Curriculum.from_batches(edit["batches"], len(runs.train)) for edit in asked]
    curricula = [*edited, *(base.curriculum for base in bases)]
    initial = np.stack([base.initial_loss for base in bases])
    ends = last(simulator.simulate(curricula, np.concatenate([initial, initial])), curricula)
    rows: list[Row] = []
    for edit, predicted in zip(asked, ends[: len(asked)] - ends[len(asked) :], strict=True):
        true = edit["true_change"].astype(np.float64)
        if not np.isfinite(predicted).all():
            raise ValueError(f"predicted changes are not finite: {edit['kind']}")
        varies = np.ptp(predicted) > 1e-12
        rows += [
            ("Pearson", edit["kind"], float(stats.pearsonr(predicted, true).statistic) if varies else 0.0),
            ("Spearman", edit["kind"], float(stats.spearmanr(predicted, true).statistic) if varies else 0.0),
            ("slope", edit["kind"], float(stats.linregress(true, predicted).slope)),
            ("right sign", edit["kind"], float(np.sign(predicted.mean()) == np.sign(true.mean()))),
        ]
    return rows


def last(losses: np.ndarray, curricula: list[Curriculum]) -> np.ndarray:
    """float [run, test]: the losses after each curriculum's last step, of [run, step + 1, test]."""
    return losses[np.arange(len(curricula)), [len(curriculum) for curriculum in curricula]]


# -------------------------------------------------------------------------- a process for each, to end it


def measure_there(sender: Connection, limit: int, *arguments: Any) -> None:
    """``measure`` in a process of its own, which the system ends after so much of a core's time."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    warnings.simplefilter("ignore")
    try:
        rows = measure(*arguments)
    except Exception as error:
        rows = [failure(f"{type(error).__name__}: {error}")]
    sender.send(rows)


def measure_within(limit: int, *arguments: Any) -> list[Row]:
    """The rows of ``measure``, or a failure where it took longer than ``limit`` seconds."""
    context = multiprocessing.get_context("forkserver")  # which imports this file once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_there, args=(sender, limit, *arguments))
    process.start()
    sender.close()
    try:
        rows = receiver.recv()
    except EOFError:  # the process ended without rows
        process.join()
        late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        rows = [failure(f"gave up after {limit} s" if late else f"ended with {process.exitcode}")]
    process.join()
    return rows


def failure(message: str) -> Row:
    return ("failure", (message.splitlines() or [""])[0], np.nan)


# --------------------------------------------------------------------------------------------- the summary


def summary(frame: pd.DataFrame) -> str:
    """Markdown: skill by regime and what-ifs by kind, for each number of training runs, then the failures."""
    frame = frame.assign(simulator=frame["simulator"] + np.where(frame["scores"] == "yes", " + scores", ""))
    parts = []
    for count, rows in sorted(frame.groupby("runs"), reverse=True):
        runs = "1 training run" if count == 1 else f"{count} training runs"
        parts += [
            f"## {runs}: skill on held-out runs, all steps / last step\n",
            skill_table(rows),
            f"\n## {runs}: what-ifs, Pearson / slope (medians over regimes) / share of right signs\n",
            edit_table(rows),
            "",
        ]
    failures = frame[frame["measure"] == "failure"]
    if len(failures):
        kept = failures[["regime", "simulator", "runs", "kind"]].rename(columns={"kind": "error"})
        parts += ["## Failures\n", kept.to_markdown(index=False)]
    return "\n".join([f"# Version {', '.join(frame['version'].unique())}\n", *parts]) + "\n"


def skill_table(rows: pd.DataFrame) -> str:
    order = list(rows["simulator"].unique())
    skill, end, seconds = (
        rows[rows["measure"] == measure].pivot_table(index="regime", columns="simulator", values="value")
        for measure in ("skill", "skill at the end", "seconds")
    )
    table = skill.map("{:.2f}".format) + " / " + end.map("{:.2f}".format)
    table = table.where(skill.notna(), "").reindex(index=sorted(rows["regime"].unique()), columns=order)
    for name in skill.columns:
        middle = f"{skill[name].median():.2f} / {end[name].median():.2f} ({skill[name].count()})"
        table.loc["median (regimes)", name] = middle
        table.loc["seconds to fit, median / most", name] = (
            f"{seconds[name].median():.2g} / {seconds[name].max():.3g}"
        )
    return table.fillna("").to_markdown()


def edit_table(rows: pd.DataFrame) -> str:
    order, kinds = list(rows["simulator"].unique()), rows[rows["measure"] == "slope"]["kind"].unique()
    every = rows.assign(kind="all kinds")
    both = pd.concat([rows[rows["kind"].isin(kinds)], every[rows["kind"].isin(kinds)]])
    pearson, slope, sign = (
        both[both["measure"] == measure].pivot_table(
            index="kind", columns="simulator", values="value", aggfunc=how
        )
        for measure, how in (("Pearson", "median"), ("slope", "median"), ("right sign", "mean"))
    )
    cells = (
        pearson.map("{:.2f}".format) + " / " + slope.map("{:.2f}".format) + " / " + sign.map("{:.0%}".format)
    )
    return cells.reindex(index=[*kinds, "all kinds"], columns=order).fillna("").to_markdown()


def package_version() -> str:
    """The last commit that changed the package, and whether there are changes since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "simfluence")
    return git("log", "-1", "--format=%h", "--", "simfluence") + ("-changed" if changed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", help="regimes; all by default")
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 4, 12])
    parser.add_argument("--simulators", nargs="+", default=SIMULATORS)
    parser.add_argument("--output", type=Path, default=ROOT / "analysis" / "results" / "bank.csv")
    parser.add_argument("--limit", type=int, default=200, help="seconds of one core")
    parser.add_argument("--version", default=package_version(), help="what to call the code in the table")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that fit
    regimes = options.only or sorted(file.stem for file in options.folder.glob("*.npz"))
    has_scores = {regime: load(options.folder / f"{regime}.npz")["scores"].size > 0 for regime in regimes}
    wanted = [
        (options.version, regime, name, "yes" if scores else "no", count)
        for count in options.runs
        for regime in regimes
        for name, _, scores in (simulator.partition("+") for simulator in options.simulators)
        if has_scores[regime] or not scores
    ]
    done: set[tuple[Any, ...]] = set()
    if options.output.exists():
        done = set(
            pd.read_csv(options.output)[KEYS].astype({"version": str}).itertuples(index=False, name=None)
        )
    for key in wanted:
        if key in done:
            continue
        _, regime, name, scores, count = key
        file = options.folder / f"{regime}.npz"
        measured = measure_within(options.limit, file, name, scores == "yes", count)
        rows = pd.DataFrame([(*key, *row) for row in measured], columns=COLUMNS)
        rows.to_csv(
            options.output, mode="a", header=not options.output.exists(), index=False, float_format="%.5g"
        )
        print(*key, *measured[0], *measured[1:2], flush=True)
    frame = pd.read_csv(
        options.output, dtype={"version": str}, keep_default_na=False, na_values={"value": [""]}
    )
    text = summary(frame[frame["version"] == options.version])
    options.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
