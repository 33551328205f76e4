"""How concentrated influence is: the share of the strongest 1 % of training examples, and the tail.

    python analysis/paper/sparsity.py --measure [DATA]     trains and scores (about 12 minutes on one core)
    python analysis/paper/sparsity.py                      the table and the figure, in seconds

MiniLM-L6 (22.7M parameters) takes one pass over a pool of training examples, its last layer and its head
being trained; then each method scores the whole pool for 20 test examples at the weights that this gives.
DATA is the folder of copa.jsonl and rte.jsonl; without it, only the packaged tasks are measured. What is
there is not measured again.

After Grosse et al. 2023, section 5.2: of language models of 0.8 to 52 billion parameters, the top 1 % of
sequences held 12 to 52 % of the total positive influence, and the tails were close to power laws.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from protocol import ROOT
from safetensors.numpy import load_file, save_file
from shown import DATA, interval, save_figure, save_tables
from tqdm import tqdm

from simfluence.attribution import (
    InfluenceScores,
    adam_similarity,
    bm25,
    ekfac,
    gradient_similarity,
    representation_similarity,
    share_of_top,
    sparsity,
    trak,
)
from simfluence.curriculum import Curriculum
from simfluence.finetuning.experiment import prepare
from simfluence.finetuning.loop import train
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.runs import RunSet

NAME = "sparsity"
TEST, FRACTION, SAMPLES, DIMENSION = 20, 0.01, 100, 256

POOLS = {"facts": 840, "openbookqa": 440, "copa": 940, "rte": 1000}
"""Task → training examples that are scored. Facts can be made up for 168 names, five sentences each;
OpenBookQA's packaged set has 500 questions, COPA's file 1000. The optimizer and its learning rate are
those of runs/TASK-minilm."""

NORMAL = 0.067
"""The share of the top 1 % if scores are normally distributed around 0: φ(2.326) / φ(0)."""

RULED_OUT = 0.1
"""A power law is ruled out below this p-value, as Clauset et al. propose."""

TEXT = """
MiniLM-L6 has 22.7M parameters, of which the last layer and the head (1.8M) were trained: a small model, on
small pools, where 1 % of the examples are four to ten. The published 12 to 52 % (Grosse et al. 2023) are of
other, far larger language models and of millions of sequences.

*Law not ruled out*: for how many test examples the fitted power law is not ruled out at p < 0.1. The p-value
takes the start of the tail as given, though it was chosen for the best fit, so that it is too lenient: it can
rule the law out, but what passes is not thereby shown to follow it. *Better / worse than exponential*: for
how many test examples the power law fits the same tail better or worse than an exponential does, at 5 %
(Vuong's test).
"""

PACKAGED = ("facts", "openbookqa")
METHODS = ("gradient_dot", "gradient_step", "ekfac", "trak", "bm25", "representation")


# ------------------------------------------------------------------------------------------ measure


def measure(data: Path | None) -> None:
    """Score what is not scored yet, method by method."""
    print("about 3 minutes a task on one core; what is there is not scored again", file=sys.stderr)
    DATA.mkdir(parents=True, exist_ok=True)
    for task in POOLS:
        file = DATA / f"{NAME}_{task}.safetensors"
        kept = load_file(file) if file.exists() else {}
        pending = [method for method in METHODS if method not in kept]
        if not pending or (data is None and task not in PACKAGED):
            continue
        model, pool, test, batch, kept["losses"] = trained(configuration(task, data))
        calls = methods(model, pool, test, batch)
        for method in tqdm(pending, desc=task):
            kept[method] = calls[method]().scores.astype(np.float32)
            save_file(kept, file)


def configuration(task: str, data: Path | None) -> dict[str, Any]:
    """That of the recorded runs of this task, but for the number of examples."""
    recorded = dict(RunSet.load(ROOT / "runs" / f"{task}-minilm")[0].config)
    one_layer = {"tuning": {"name": "last_layers", "layers": 1}}
    drawn = {"n_train": POOLS[task], "n_test": 168 if task == "facts" else TEST}
    if task not in PACKAGED:
        assert data is not None
        drawn["path"] = str(data / f"{task}.jsonl")
    return recorded | one_layer | {"task": recorded["task"] | drawn}


def trained(config: dict[str, Any]) -> tuple[Any, list[Any], list[Any], int, np.ndarray]:
    """The model after one pass over the pool, the pool, the test examples, the batch size; and mean losses,
    float32 [before or after the pass, training or test examples].
    """
    prepared = prepare(config)
    model, pool, test = prepared.model, prepared.task.train, prepared.task.test[:TEST]
    batch = int(config["run"]["design"]["batch_size"])
    before = [mean_loss(model, some) for some in (pool, test)]
    order = np.random.default_rng(0).permutation(len(pool))
    curriculum = Curriculum.from_batches(np.split(order, range(batch, len(pool), batch)), len(pool))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(parameters, len(curriculum), **config["run"]["optimizer"])
    train(model, pool, curriculum, optimizer, schedule=schedule)
    optimizer.zero_grad()
    losses = np.array([before, [mean_loss(model, some) for some in (pool, test)]], np.float32)
    return model, pool, test, batch, losses


def methods(
    model: Any, pool: list[Any], test: list[Any], batch: int
) -> dict[str, Callable[[], InfluenceScores]]:
    """Name → what computes the scores [train, test] at the model's weights."""
    texts = [[example.text for example in some] for some in (pool, test)]
    passes: dict[str, Any] = {"batch_size": 16}
    return {
        "gradient_dot": lambda: gradient_similarity(model, pool, test, **passes),
        "gradient_step": lambda: adam_similarity(model, pool, test, batch=batch, **passes),
        "ekfac": lambda: ekfac(model, pool, test, **passes),
        "trak": lambda: trak(model, pool, test, dimension=DIMENSION, **passes),
        "bm25": lambda: bm25(*texts),
        "representation": lambda: representation_similarity(model, pool, test, **passes),
    }


@torch.no_grad()
def mean_loss(model: Any, examples: Sequence[Any]) -> float:
    """In eval mode."""
    model.eval()
    parts = [model.losses(examples[start : start + 20]) for start in range(0, len(examples), 20)]
    return float(torch.cat(parts).mean())


# --------------------------------------------------------------------------------------------- show


def against_exponential(tail: np.ndarray, start: float) -> float:
    """By how many standard errors a power law fits a tail, from ``start`` on, better than an exponential.

        z = Σ d / (√m sd(d)),   d = ln p(s) − ln q(s)      p power law, q exponential, both fitted above start

    Vuong's test (Clauset et al. 2009, section 5): above 1.6, the power law fits better; below −1.6, the
    exponential. NaN of fewer than ten values, or if they are all the same.
    """
    if len(tail) < 10 or tail.mean() <= start:
        return float("nan")
    slope = 1 / np.log(tail / start).mean()  # α − 1
    rate = 1 / (tail.mean() - start)
    d = np.log(slope / start) - (slope + 1) * np.log(tail / start) - np.log(rate) + rate * (tail - start)
    return float(d.sum() / (np.sqrt(len(d)) * d.std())) if d.std() > 0 else float("nan")


def rows(task: str, tensors: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The table's rows of one task: means over test examples, and intervals by a bootstrap over them."""
    found = []
    for method in METHODS:
        columns = tensors[method].astype(np.float64).T
        of_one = sparsity(InfluenceScores(columns.T, method), fraction=FRACTION, samples=SAMPLES)
        sizes = of_one["tail_size"].tolist()
        tails = [np.sort(column)[-size:] for column, size in zip(columns, sizes, strict=True) if size]
        better = np.array([against_exponential(tail, tail[0]) for tail in tails])
        found.append(
            {
                "task": task,
                "method": method,
                "examples scored": columns.shape[1],
                "positive": f"{(columns > 0).mean():.0%}",
                "share of top 1 %": interval(of_one["share"], 3),
                "share of top 5 %": interval([share_of_top(column, 0.05) for column in columns], 3),
                "exponent": interval(of_one["alpha"], 1),
                "values in a tail": f"{int(np.median(sizes))} ({min(sizes)} to {max(sizes)})",
                "law not ruled out": f"{(of_one['p_value'] >= RULED_OUT).sum()} of {len(columns)}",
                "better / worse than exponential": f"{(better > 1.64).sum()} / {(better < -1.64).sum()}",
            }
        )
    return found


def draw(measured: dict[str, dict[str, np.ndarray]], table: pd.DataFrame) -> Figure:
    """Left: the shares. Right: how the influence on a test example is distributed, of one method a panel."""
    shown = ("gradient_dot", "ekfac")
    figure, (left, *right) = plt.subplots(
        1, 1 + len(shown), figsize=(14, 4.2), layout="constrained", width_ratios=[1.5, 1, 1]
    )
    left.axhspan(12, 52, color="0.92", label="published, models of 0.8 to 52 B (Grosse et al. 2023)")
    left.axhline(100 * NORMAL, color="0.4", linestyle=":", label="normally distributed scores")
    for number, (task, marker) in enumerate(zip(measured, "osD^", strict=False)):
        shares = table[table["task"] == task]["share of top 1 %"]
        means = np.array([share[:3] for share in shares])
        at = np.arange(len(METHODS)) + 0.16 * (number - (len(measured) - 1) / 2)
        spread = 100 * np.abs(means[:, 1:] - means[:, :1]).T
        name = f"{task} ({measured[task]['ekfac'].shape[0]} examples)"
        left.errorbar(at, 100 * means[:, 0], spread, fmt=marker, markersize=5, color=f"C{number}", label=name)
    left.set_xticks(range(len(METHODS)), METHODS, rotation=20)
    left.set(ylabel="share of total positive influence, %", ylim=(0, 80))
    left.set_title("Held by the top 1 % of training examples (95 % over test examples)", fontsize=10)
    left.legend(fontsize=8)
    for axes, method in zip(right, shown, strict=True):
        for number, task in enumerate(measured):
            values = measured[task][method].astype(np.float64)
            positive = values / np.maximum(values, 0).mean(0)
            ordered = np.sort(positive, axis=0)[::-1].T  # [test, rank]
            middle = np.exp(np.median(np.log(np.maximum(ordered, 1e-9)), 0))
            chance = (np.arange(len(middle)) + 1) / len(middle)
            axes.loglog(middle[middle > 1e-3], chance[middle > 1e-3], color=f"C{number}", label=task)
        axes.set_title(f"Distribution of {method} scores, median over tests", fontsize=10)
        axes.set(xlabel="influence / mean of the positive part", ylabel="share of examples at or above it")
        axes.set_xlim(1e-2, None)
    return figure


def show() -> None:
    """The tables and the figure of all tasks that were scored by all methods."""
    measured = {
        task: load_file(file) for task in POOLS if (file := DATA / f"{NAME}_{task}.safetensors").exists()
    }
    measured = {task: tensors for task, tensors in measured.items() if {*METHODS} <= {*tensors}}
    table = pd.DataFrame([row for task, tensors in measured.items() for row in rows(task, tensors)])
    losses = pd.DataFrame(
        [
            {
                "task": task,
                **{
                    f"{what}, {when}": f"{tensors['losses'][i, j]:.3f}"
                    for j, what in enumerate(("training loss", "test loss"))
                    for i, when in enumerate(("before", "after"))
                },
            }
            for task, tensors in measured.items()
        ]
    )
    save_tables(
        NAME,
        f"python analysis/paper/{NAME}.py --measure DATA",
        TEXT,
        [
            (f"Means over {TEST} test examples with 95 % intervals of a bootstrap over them.", table),
            ("Mean losses around the one pass over the pool, at whose end scores were taken.", losses),
        ],
    )
    save_figure(draw(measured, table), NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", nargs="?", const="", metavar="DATA", help="train and score first")
    options = parser.parse_args()
    if options.measure is not None:
        measure(Path(options.measure) if options.measure else None)
    show()


if __name__ == "__main__":
    main()
