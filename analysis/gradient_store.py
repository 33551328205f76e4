"""How near the scores of a store of gradients come to exact ones, and what that costs simulators.

    python analysis/gradient_store.py [set ...] [--ks 512 1024 2048 4096 8192] [--simulate 512 4096 …]
    python analysis/gradient_store.py [set ...] --shares .1 .25 .5

For each set of runs/ and number k of a gradient's projection: the correlation over all pairs of the store's
scores with exact ones (scores/initial.safetensors beside the set), with as many landmarks as the store takes
by itself, with a quarter of the training examples as landmarks (as in sets with more examples than k) and
without any; and for the k of --simulate the skill of ``AutoSimulator`` that these scores lose against exact
ones, fitted to one run and to twenty, over the mean trajectory of these twenty on the last ten runs. Writes
analysis/results/gradient_store (.csv, .md, .png).

With --shares: the same of exact scores with Adam's sizes from a share of the training examples, three draws
of each; writes analysis/results/gradient_store_sizes.md.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch

from simfluence.attribution import AttributionContext, attribute
from simfluence.attribution.landmarks import Projection, basis_of, drawn
from simfluence.attribution.sketch import Sketch
from simfluence.attribution.store import GradientStore
from simfluence.attribution.store_files import narrowed
from simfluence.attribution.store_sizes import read_scales
from simfluence.attribution.store_writing import write_store
from simfluence.attribution.tracing import Tracer, tracer
from simfluence.evaluation import metrics
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.runs import RunSet
from simfluence.scores import INITIAL_SCORES, InfluenceScores
from simfluence.simulators import AutoSimulator, MeanTrajectory

mpl.use("Agg")
import matplotlib.pyplot as plt

RUNS = Path(__file__).parents[1] / "runs"
RESULTS = Path(__file__).parent / "results"
SETS = ("openbookqa-minilm", "facts-minilm")
WIDTH = 2**16
SIZES = (1, 20)
HELD_OUT = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--ks", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--simulate", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--shares", type=float, nargs="+")
    options = parser.parse_args()
    rows = []
    if options.shares:
        for name in options.sets:
            rows += from_samples(name, options.shares)
        (RESULTS / "gradient_store_sizes.md").write_text(
            "# Adam's sizes from a share of the training examples\n\n"
            "`python analysis/gradient_store.py --shares .1 .25 .5`\n\n"
            + pd.DataFrame(rows).to_markdown(index=False, floatfmt=".4f")
            + "\n"
        )
        return
    for name in options.sets:
        runs, exact = RunSet.load(RUNS / name), InfluenceScores.load(RUNS / name / INITIAL_SCORES)
        rows += measured(name, runs, exact, options.ks, options.simulate)
    frame = pd.DataFrame(rows)
    frame.to_csv(RESULTS / "gradient_store.csv", index=False, float_format="%.5g")
    (RESULTS / "gradient_store.md").write_text(
        "# Scores of a store of gradients against exact ones\n\n`python analysis/gradient_store.py`\n\n"
        + frame.to_markdown(index=False, floatfmt=".4f")
        + "\n"
    )
    draw(frame).savefig(RESULTS / "gradient_store.png", dpi=150)


def from_samples(name: str, shares: Sequence[float]) -> Iterator[dict[str, object]]:
    """A row for each share and draw."""
    runs, exact = RunSet.load(RUNS / name), InfluenceScores.load(RUNS / name / INITIAL_SCORES)
    context, n = recorded_context(RUNS / name, runs[0], "initial"), len(runs.train)
    known = {size: skill(exact, runs, size) for size in SIZES}
    for share, draw in itertools.product(shares, range(3)):
        which = np.random.default_rng(draw).permutation(n)[: int(share * n)]
        some = attribute(context, "gradient_step", population=[context.train[i] for i in which])
        found = replace(exact, scores=some.scores)
        row: dict[str, object] = {"set": name, "share": share, "draw": draw}
        row["correlation"] = np.corrcoef(found.scores.ravel(), exact.scores.ravel())[0, 1]
        for size, of_exact in known.items():
            row[f"loss of skill, {size} run{'s' * (size > 1)}"] = of_exact - skill(found, runs, size)
        print(*row.values(), sep="  ", flush=True)
        yield row


def measured(
    name: str, runs: RunSet, exact: InfluenceScores, ks: Sequence[int], simulate: Sequence[int]
) -> Iterator[dict[str, object]]:
    """A row for each k and number of landmarks."""
    context = recorded_context(RUNS / name, runs[0], "initial")
    known = {size: skill(exact, runs, size) for size in SIZES} if simulate else {}
    print(name, "exact", known, flush=True)
    for k, landmarks, gradients in projected(context, ks):
        train, scale = narrowed(gradients[: len(context.train)].numpy())
        scores = (train * scale[:, None]) @ gradients[len(context.train) :].numpy().T
        row = {"set": name, "k": k, "landmarks": landmarks}
        row["correlation"] = np.corrcoef(scores.ravel(), exact.scores.ravel())[0, 1]
        if k in simulate:
            stored = replace(exact, scores=scores)
            for size, of_exact in known.items():
                row[f"loss of skill, {size} run{'s' * (size > 1)}"] = of_exact - skill(stored, runs, size)
        print(*row.values(), sep="  ", flush=True)
        yield row


def projected(context: AttributionContext, ks: Sequence[int]) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(k, landmarks, gradients [training and test example, k]), each batch traced once for all of them."""
    n, module = len(context.train), context.objective.module
    with tempfile.TemporaryDirectory() as folder, context.checkpoints[-1].loaded(module):
        start = time.perf_counter()
        print(write_store(context, folder, k=max(ks)), f"{time.perf_counter() - start:.0f} s", flush=True)
        manifest = GradientStore(folder).manifest
        with tracer(context.objective, context.train[:2]) as trace:
            scales = read_scales(Path(folder), manifest, trace)
            wide = Sketch(trace.parameters, WIDTH, 0, scales)
            sketches = [wide, *(Sketch(trace.parameters, k, 0, scales) for k in ks)]
            of_width, *of_k = sketched(trace, context, sketches)
    yield from ((k, 0, found) for k, found in zip(ks, of_k, strict=True))
    for k in ks:
        for landmarks in (n // 4, min(n, k // 2)):
            project = Projection(wide, basis_of(of_width[drawn(n, landmarks, 0)]), k, 0)
            yield k, landmarks, project.shortened(of_width)


def sketched(trace: Tracer, context: AttributionContext, sketches: Sequence[Sketch]) -> list[torch.Tensor]:
    found: list[list[torch.Tensor]] = [[] for _ in sketches]
    for examples in (context.train, context.test):
        for batch in trace.batches(examples, 8):
            traced = trace(batch)
            for sketch, parts in zip(sketches, found, strict=True):
                parts.append(sketch(traced))
    return [torch.cat(parts) for parts in found]


def skill(scores: InfluenceScores, runs: RunSet, size: int) -> float:
    """Of ``AutoSimulator`` with these scores, fitted to so many runs."""
    test = runs[-HELD_OUT:]
    simulated, mean = (
        one.simulate(test.curricula, test.initial_loss)
        for one in (AutoSimulator(scores).fit(runs[:size]), MeanTrajectory().fit(runs[: max(SIZES)]))
    )
    errors = (metrics.all_steps_mse(test.loss, losses) for losses in (simulated, mean))
    return metrics.counterfactual_skill(*errors)


def draw(frame: pd.DataFrame) -> plt.Figure:
    """1 − correlation against k, a line for each set and kind of landmarks."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for number, (name, of_set) in enumerate(frame.groupby("set", sort=False)):
        quarter = of_set["landmarks"].loc[lambda count: count > 0].min()
        kinds = {
            "no landmarks": (of_set["landmarks"] == 0, ":"),
            f"{quarter} landmarks": (of_set["landmarks"] == quarter, "--"),
            "landmarks by default": (of_set["landmarks"] > quarter, "-"),
        }
        for kind, (chosen, style) in kinds.items():
            some = of_set[chosen]
            line = {"color": f"C{number}", "linestyle": style, "marker": "o", "markersize": 3}
            axis.plot(some["k"], 1 - some["correlation"], label=f"{name}, {kind}", **line)
    axis.axhline(0.01, color="grey", linewidth=0.8)
    axis.set(
        xscale="log", yscale="log", xlabel="k, numbers a gradient", ylabel="1 − correlation with exact scores"
    )
    axis.set_xticks(sorted(frame["k"].unique()), sorted(frame["k"].unique()))
    axis.minorticks_off()
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


if __name__ == "__main__":
    main()
