"""Simulators on a bank of recorded regimes whose what-ifs were retrained.

    python analysis/bank.py FOLDER [--only REGIME ...] [--runs 1 4 12] [--simulators NAME ...]
        [--output analysis/results/bank.csv] [--limit 200]

FOLDER holds one .npz file a regime (optimizer, schedule, model, data) and load.py, whose ``load(path)``
reads one and whose docstring says what is in it. Of each regime's 16 runs the first 12 may train and the last
four are held out. The edits are other curricula for held-out runs, with their learning rates, and the losses
after really training on them. NAME+start is a simulator that is given the gradient scores at the shared
initial weights, NAME+along one that is given those at several steps of one run; they are left out for a
regime that has none.

There is one row a version, regime, simulator, number of training runs, measure and kind of edit. Rows that
are there are not made again, so that an interrupted run goes on where it was. The measures:

- ``skill``, ``skill at the end``: 1 − MSE / MSE of the mean trajectory of the same training runs, on the
  held-out runs, over all steps with a recorded loss (each run weighs the same), and at the last step alone.
- ``Pearson``, ``Spearman``: correlation over test examples of the predicted and the true change that an edit
  makes to the last loss. The change is predicted as what-ifs are: by two simulations from the base run's
  initial losses, and by what the edit keeps of the base run's residual (simfluence/residual.py). 0 stands
  where the same change is predicted for all test examples.
- ``slope``: of the least-squares line of predicted (y) on true (x) changes: 1 for changes of the right size,
  less for smaller ones.
- ``right sign``: 1 if the mean over test examples of the predicted changes has the sign of the true one's.
- ``seconds``: to fit, of one core.
- ``failure``: the first line of the error is in the column ``kind``. To take longer than ``--limit`` seconds
  of one core, for fitting and simulating, is a failure too.

A summary of every version as Markdown is written beside the .csv, to the file of the same name that ends in
.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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

import simfluence
from simfluence.curriculum import Curriculum
from simfluence.evaluation import metrics
from simfluence.residual import carried
from simfluence.runs import ExampleTable, RunSet
from simfluence.simulators import Simulator, make_simulator

RESULTS = Path(__file__).parent / "results"
SIMULATORS = [
    "mean_trajectory",
    "persistence",
    "linear",
    "auto",
    "auto+start",
    "auto+along",
    "dynamics+along",
]
GIVEN = {"start": "scores", "along": "scores_along"}
"""What a regime calls the scores that a simulator may be given."""
FORMER_NAMES = {"dynamics": "replayed"}  # in versions that do not have the simulator by its present name
HELD_OUT = slice(12, 16)
KEYS = ["version", "regime", "simulator", "scores", "runs"]
COLUMNS = [*KEYS, "measure", "kind", "value"]
# what the summary's cells show: measure, how it is taken over regimes, and its form
OF_REGIMES = [("skill", "median", ".2f"), ("skill at the end", "median", ".2f"), ("seconds", "median", ".0f")]
OF_EDITS = [("Pearson", "median", ".2f"), ("slope", "median", ".2f"), ("right sign", "mean", ".0%")]
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
        metric, rates = {"loss": run.loss[evaluated]}, rates[: len(run)].astype(np.float64)
        logged.append(dataclasses.replace(run, metrics=metric, evaluated=evaluated, learning_rate=rates))
    return RunSet(logged, train, test)


def make(name: str, scores: np.ndarray | list[np.ndarray] | None) -> Simulator:
    """The simulator of that name or, in a version that does not know it, of its former name."""
    params = {} if scores is None else {"scores": scores}
    try:
        return make_simulator(name, **params)
    except ValueError:
        if name not in FORMER_NAMES:
            raise
        return make_simulator(FORMER_NAMES[name], **params)


def measure(file: Path, name: str, given: str, count: int) -> list[Row]:
    """All measures of one simulator, fitted to the first ``count`` runs of one regime."""
    regime = load(file)
    runs = run_set(regime)
    scores = regime[GIVEN[given]].astype(np.float64) if given else None
    simulator = make(name, list(scores) if given == "along" and scores is not None else scores)
    start = time.process_time()
    simulator.fit(runs[:count])
    seconds = time.process_time() - start
    mean = make("mean_trajectory", None).fit(runs[:count])
    return [("seconds", "", seconds), *skills(simulator, mean, runs), *edits(simulator, regime, runs)]


def skills(simulator: Simulator, mean: Simulator, runs: RunSet) -> list[Row]:
    """Skill on the held-out runs."""
    held_out = runs[HELD_OUT]
    true, curricula = held_out.loss, held_out.curricula
    both = [one.simulate(curricula, held_out.initial_loss) for one in (simulator, mean)]
    all_steps = [metrics.all_steps_mse(true, losses) for losses in both]
    at_the_end = [np.square(last(losses, curricula) - last(true, curricula)) for losses in both]
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
    rates = np.zeros((len(curricula), max(len(curriculum) for curriculum in curricula)))
    logged = [*(edit["lr"] for edit in asked), *(base.learning_rate for base in bases)]
    for row, known, curriculum in zip(rates, logged, curricula, strict=True):
        row[: len(curriculum)] = known[: len(curriculum)]
    simulated = simulator.simulate(curricula, np.concatenate([initial, initial]), rates)
    ends = last(simulated, curricula)
    rows: list[Row] = []
    for number, edit in enumerate(asked):
        base, own = len(asked) + number, edited[number]
        of_both = (rates[base, : len(curricula[base])], rates[number, : len(own)])
        found = carried(bases[number], own, simulated[base], of_both)
        predicted = ends[number] - ends[base] + found.carried[-1] - found.residual[-1]
        true = edit["true_change"].astype(np.float64)
        if not np.isfinite(predicted).all():
            raise ValueError(f"predicted changes are not finite: {edit['kind']}")
        varies = np.ptp(predicted) > 1e-12
        values = {
            "Pearson": stats.pearsonr(predicted, true).statistic if varies else 0.0,
            "Spearman": stats.spearmanr(predicted, true).statistic if varies else 0.0,
            "slope": stats.linregress(true, predicted).slope,
            "right sign": np.sign(predicted.mean()) == np.sign(true.mean()),
        }
        rows += [(name, edit["kind"], float(value)) for name, value in values.items()]
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
    process = context.Process(target=measure_there, args=(sender, limit, *arguments), daemon=True)
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
    frame = frame.assign(
        simulator=frame["simulator"] + np.where(frame["scores"] != "", " + " + frame["scores"], "")
    )
    parts = [f"# Version {', '.join(frame['version'].unique())}"]
    for count, rows in sorted(frame.groupby("runs"), reverse=True):
        runs = f"{count} training run{'s' if count > 1 else ''}"
        parts += [
            f"## {runs}: skill on held-out runs, all steps / last step / seconds to fit",
            table(rows, "regime", "median over regimes", OF_REGIMES),
            f"## {runs}: what-ifs, Pearson / slope (medians over regimes) / share of right signs",
            table(rows, "kind", "all kinds", OF_EDITS),
        ]
    failures = frame.loc[frame["measure"] == "failure", ["regime", "simulator", "runs", "kind"]]
    if len(failures):
        parts += ["## Failures", failures.rename(columns={"kind": "error"}).to_markdown(index=False)]
    return "\n\n".join(parts) + "\n"


def table(rows: pd.DataFrame, by: str, over_all: str, measures: list[tuple[str, str, str]]) -> str:
    """A column a simulator, all measures in each cell, and a last row over all other rows."""
    rows = rows[rows["measure"].isin([measure for measure, _, _ in measures])]
    both = pd.concat([rows, rows.assign(**{by: over_all})])
    shown = []
    for measure, how, form in measures:
        of_one = both[both["measure"] == measure]
        values = of_one.pivot_table("value", by, "simulator", aggfunc=how)
        shown.append(values.map(f"{{:{form}}}".format).where(values.notna()))
    cells = functools.reduce(lambda left, right: left + " / " + right, shown)
    order = {"index": [*rows[by].unique(), over_all], "columns": rows["simulator"].unique()}
    return cells.reindex(**order).fillna("").to_markdown()


def read(table: Path) -> pd.DataFrame:
    """The rows made so far."""
    if not table.exists():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(table, dtype={"version": str}, keep_default_na=False, na_values={"value": [""]})


def package_version() -> str:
    """The last commit that changed the imported package, and whether there are changes since."""

    def git(*words: str) -> str:
        folder = Path(simfluence.__file__).parent
        return subprocess.run(["git", *words, "."], cwd=folder, capture_output=True, text=True).stdout.strip()

    return git("log", "-1", "--format=%h") + ("-changed" if git("status", "--porcelain") else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", help="regimes; all by default")
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 4, 12])
    parser.add_argument("--simulators", nargs="+", default=SIMULATORS)
    parser.add_argument("--output", type=Path, default=RESULTS / "bank.csv")
    parser.add_argument("--limit", type=int, default=200, help="seconds of one core")
    parser.add_argument("--version", default=package_version(), help="what to call the code in the table")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that fit
    regimes = options.only or sorted(file.stem for file in options.folder.glob("*.npz"))
    has_scores = {regime: load(options.folder / f"{regime}.npz")["scores"].size > 0 for regime in regimes}
    wanted = [
        (options.version, regime, name, given, count)
        for count in options.runs
        for regime in regimes
        for name, _, given in (simulator.partition("+") for simulator in options.simulators)
        if has_scores[regime] or not given
    ]
    done = set(read(options.output)[KEYS].itertuples(index=False, name=None))
    for key in [key for key in wanted if key not in done]:
        _, regime, name, given, count = key
        file = options.folder / f"{regime}.npz"
        measured = measure_within(options.limit, file, name, given, count)
        rows = pd.DataFrame([(*key, *row) for row in measured], columns=COLUMNS)
        new = not options.output.exists()
        rows.to_csv(options.output, mode="a", header=new, index=False, float_format="%.5g")
        print(*key, *measured[:2], flush=True)
    versions = read(options.output).groupby("version", sort=False)
    text = "\n".join(summary(rows) for _, rows in versions)
    options.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
