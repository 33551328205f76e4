"""Two more run sets: a language model fine-tuned on made-up facts, and a set of many examples and steps.

    python analysis/paper/small_gpt.py                                   (the language models, once)
    python analysis/paper/more_sets.py --measure [--sets facts-gpt large]

facts-gpt   the middle size of small_gpt.py, all weights trained, on the made-up facts of task=facts: 16 + 4
            runs by the published protocol (128 of 200, batches of 4, three passes, every step).
large       the small size, all weights trained, on completions of statements about 210 made-up people
            (made_up_text.py): 8 + 4 runs of 1344 of 2100 examples, the same share, in batches of 4, three
            passes: 1008 steps, and the loss of 20 test examples after every one.

Learning rates follow the rule of rates.py; the sweep is kept in analysis/results/paper/data/more_sets.csv.
Beside each set, scores.safetensors are those of gradient_step at the initial weights. Interrupted, the same
command goes on. Without --measure, it shows what the sets are: analysis/results/paper/more_sets.csv and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

import numpy as np
import pandas as pd
from made_up_text import completions
from omegaconf import OmegaConf
from protocol import RESULTS, ROOT, RUNS
from rates import LEARNT, last_over_first

from simfluence import RunSet, report
from simfluence.attribution import attribute
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.finetuning.experiment import record_runs
from simfluence.options import compose

SETS: dict[str, dict[str, Any]] = {
    "facts-gpt": {
        "runs": 20,
        "metrics": "[accuracy]",
        "grid": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "options": [
            "task=facts",
            "model=pretrained",
            "model.name=runs/small-gpt/middle",
            "model.max_length=64",
            "tuning=full",
            "run.eval_batch_size=40",
        ],
    },
    "large": {
        "runs": 12,
        "metrics": "[]",  # the accuracy would take as long as all else
        "grid": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        "options": [
            "task=jsonl",
            "task.path=runs/made-up-people/train.jsonl",
            "task.test_path=runs/made-up-people/test.jsonl",
            "task.name=made-up people",
            "task.n_train=2100",
            "task.n_test=20",
            "model=pretrained",
            "model.name=runs/small-gpt/small",
            "model.max_length=64",
            "tuning=full",
            "run.design.size=1344",
            "run.eval_batch_size=20",
        ],
    },
}
RATES = RESULTS / "data" / "more_sets.csv"


def configuration(name: str, rate: float) -> dict[str, Any]:
    """The experiment as :func:`simfluence.finetuning.experiment.record_runs` takes it."""
    options = [*SETS[name]["options"], f"run.optimizer.lr={rate}", f"run.metrics={SETS[name]['metrics']}"]
    composed = OmegaConf.to_container(compose("record", options), resolve=True)
    assert isinstance(composed, dict)
    return {str(key): composed[key] for key in ("task", "model", "tuning", "run")}


def chosen_rate(name: str) -> float:
    """The smallest rate of the grid that learns the training examples (see rates.py); swept once."""
    known = pd.read_csv(RATES) if RATES.exists() else pd.DataFrame(columns=["set", "rate", "last over first"])
    for rate in SETS[name]["grid"]:
        found = known[(known["set"] == name) & (known["rate"] == rate)]
        if found.empty:
            share = round(last_over_first(configuration(name, rate)), 3)
            row = pd.DataFrame([{"set": name, "rate": rate, "last over first": share}])
            known = pd.concat([known, row]) if len(known) else row
            print(row.to_string(index=False, header=False), file=sys.stderr, flush=True)
            known.to_csv(RATES, index=False)
        else:
            share = float(found["last over first"].iloc[0])
        if share <= LEARNT:
            return float(rate)
    of_set = known[known["set"] == name]
    return float(of_set["rate"].loc[of_set["last over first"].idxmin()])


def write_people() -> None:
    """The completions of the large set, as JSONL files."""
    folder = RUNS.parent / "made-up-people"
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in zip(("train", "test"), completions(210), strict=True):
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def measure(name: str) -> None:
    """Record the set's runs that are not recorded yet, and score its training examples."""
    rate, path = chosen_rate(name), RUNS / name
    print(f"{name}: {SETS[name]['runs']} runs at rate {rate}", file=sys.stderr, flush=True)
    record_runs(configuration(name, rate), path, count=SETS[name]["runs"])
    if not (path / "scores.safetensors").exists():
        run = RunSet.load(path)[0]
        scores = attribute(recorded_context(path, run, "initial"), "gradient_step", progress=True)
        report.with_run(scores, name, run.id).save(path / "scores.safetensors")


def show() -> None:
    """What the recorded sets are, and how losses and accuracy moved in their runs."""
    rates = pd.read_csv(RATES)
    rows = []
    for name in SETS:
        runs = RunSet.load(RUNS / name)
        first, last = (np.array([run.loss[step].mean() for run in runs]) for step in (0, -1))
        before, after = (np.array([run.metrics["accuracy"][step].mean() for run in runs]) for step in (0, -1))
        rows.append({
            "set": name, "runs": len(runs), "training examples": len(runs.train),
            "steps": len(runs[0].curriculum), "test examples": len(runs.test),
            "rate": runs[0].config["run"]["optimizer"]["lr"],
            "test loss before": f"{first.mean():.3f}", "after": f"{last.mean():.3f} ± {last.std(ddof=1):.3f}",
            "accuracy before": f"{before.mean():.2f}",
            "accuracy after": f"{after.mean():.2f} ± {after.std(ddof=1):.2f}",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / "more_sets.csv", index=False)
    (RESULTS / "more_sets.md").write_text("\n".join([
        "# Two more run sets", "",
        "Means over test examples, ± the standard deviation over runs. Chance is an accuracy of 0.25 on the"
        " facts and 0.5 on RTE.", "",
        table.to_markdown(index=False), "",
        "The sweep of learning rates: the mean training loss of the last of three passes, as a share of the"
        " first's, in one run a rate.", "",
        rates.to_markdown(index=False), "",
        "Recorded by `python analysis/paper/more_sets.py --measure DATA`.", "",
    ]))  # fmt: skip


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options = parser.parse_args()
    if options.measure:
        write_people()
        RATES.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(ROOT):  # runs keep the paths of model and data, so these are relative
            for name in options.sets:
                measure(name)
    if all((RUNS / name / "examples.parquet").exists() for name in SETS):
        show()


if __name__ == "__main__":
    main()
