"""Two more run sets: a language model fine-tuned on made-up facts, and a set of many examples and steps.

    python analysis/paper/small_gpt.py                                   (the language models, once)
    python analysis/paper/more_sets.py --measure [--sets facts-gpt large]

facts-gpt   the middle size of small_gpt.py, all weights trained, on the made-up facts of task=facts: 16 + 4
            runs by the published protocol (128 of 200, batches of 4, three passes, every step).
large       the small size, all weights trained, on completions of statements about 210 made-up people
            (made_up_text.py): 8 + 4 runs of 1344 of 2100 examples, the same share, in batches of 4, three
            passes: 1008 steps, and the loss of 20 test examples after every one.

Learning rates follow the rule of rates.py, and one condition more: that the right one of four choices is the
likeliest for at least half of the training examples after the run. (The loss of a language model falls by a
fifth when it learns what the sentences look like, before it has learnt one fact.) The sweep is kept in
analysis/results/paper/data/more_sets.csv. Beside each set, scores.safetensors are those of gradient_step at
the initial weights. Interrupted, the same command goes on. Without --measure, it shows what the sets are:
analysis/results/paper/more_sets.csv and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

import numpy as np
import pandas as pd
import torch
from made_up_text import completions
from omegaconf import OmegaConf
from protocol import RESULTS, ROOT, RUNS
from rates import FIRST, LEARNT, last_over_first
from rates import GRID as ALL_RATES
from shown import write_latex

from simfluence import RunSet, report
from simfluence.attribution import attribute
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.finetuning.experiment import planned_curricula, prepare, record_runs
from simfluence.options import compose

SETS: dict[str, dict[str, Any]] = {
    "facts-gpt": {
        "runs": 20,
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
GRID = [rate for rate in ALL_RATES if rate >= FIRST["full"]]
RIGHT = 0.5
"""The accuracy on training examples from which they count as learnt; chance is a quarter."""


def configuration(name: str, rate: float) -> dict[str, Any]:
    """The experiment as :func:`simfluence.finetuning.experiment.record_runs` takes it."""
    options = [*SETS[name]["options"], f"run.optimizer.lr={rate}"]
    composed = OmegaConf.to_container(compose("record", options), resolve=True)
    assert isinstance(composed, dict)
    return {str(key): composed[key] for key in ("task", "model", "tuning", "run")}


def chosen_rate(name: str) -> float:
    """The smallest rate of the grid at which a run learns its training examples; swept once.

    Raises ValueError if there is none.
    """
    known = pd.read_csv(RATES) if RATES.exists() else pd.DataFrame({"set": [], "rate": []})
    for rate in GRID:
        if known[(known["set"] == name) & (known["rate"] == rate)].empty:
            row = pd.DataFrame([{"set": name, "rate": rate, **trained_once(configuration(name, rate))}])
            print(row.to_string(index=False, header=False), file=sys.stderr, flush=True)
            known = pd.concat([known, row]) if len(known) else row
            known.to_csv(RATES, index=False)
        (found,) = known[(known["set"] == name) & (known["rate"] == rate)].to_dict("records")
        if found["last over first"] <= LEARNT and found["accuracy"] >= RIGHT:
            return rate
    raise ValueError(f"{name} learns its training examples at none of the rates {GRID}")


def trained_once(config: dict[str, Any]) -> dict[str, float]:
    """The training loss of the last pass over the first's, and the accuracy on the examples trained on."""
    share = last_over_first(config)
    prepared = prepare(config)  # the model that was just trained
    seen = np.unique(planned_curricula(config, prepared.task, 1)["run-000"].examples)[:200]
    with torch.no_grad():
        right = prepared.model.metrics([prepared.task.train[i] for i in seen])["accuracy"].float().mean()
    return {"last over first": round(share, 3), "accuracy": round(float(right), 3)}


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
        rows.append({
            "set": name, "runs": len(runs), "training examples": len(runs.train),
            "steps": len(runs[0].curriculum), "test examples": len(runs.test),
            "rate": runs[0].config["run"]["optimizer"]["lr"],
            "loss before": over_runs([run.loss[0].mean() for run in runs]),
            "loss after": over_runs([run.loss[-1].mean() for run in runs]),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / "more_sets.csv", index=False)
    write_latex("more_sets", [table, rates])
    (RESULTS / "more_sets.md").write_text("\n".join([
        "# Two more run sets", "",
        "Losses, in nats a token of the answer, are means over test examples, ± the standard deviation over"
        " runs. Accuracy is not recorded: it takes the scores of all four choices, three times as long.", "",
        table.to_markdown(index=False), "",
        "The sweep of learning rates, one run a rate: the mean training loss of the last of three passes, as"
        " a share of the first's, and the accuracy (chance is 0.25) on up to 200 of the examples that were"
        f" trained on. Chosen is the first rate with a share of at most {LEARNT} and an accuracy of at least"
        f" {RIGHT}.", "",
        rates.to_markdown(index=False), "",
        "Recorded by `python analysis/paper/more_sets.py --measure`.", "",
    ]))  # fmt: skip


def over_runs(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


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
