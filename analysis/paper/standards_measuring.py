"""What standards.py shows, measured: banks of retrained subsets, scores, removals, patches, planted examples.

Every stage writes small files under analysis/results/paper/data/standards/ and goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.numpy import save_file
from standards_planting import PLANTINGS, mislabelled, triggered
from standards_tasks import (
    DATA,
    FACTS,
    METHODS,
    N_TRAIN,
    OF_LABELS,
    RECORDED,
    SCORED_ORDER,
    SEEDS,
    SIMULATOR,
    SUSPECTED_BY,
    Mask,
    Measured,
    bank_file,
    copa,
    leave_one_out_sets,
    removal_sets,
    scores_file,
    scores_of,
    simulated_file,
    subsets,
)

from simfluence import AutoSimulator, RunSet
from simfluence.attribution import AttributionContext, InfluenceScores, attribute
from simfluence.curriculum.edits import remove
from simfluence.evaluation.metrics import final_loss
from simfluence.evaluation.standards import SubsetBank
from simfluence.finetuning.experiment import Prepared, prepare
from simfluence.finetuning.subset_context import trained_context
from simfluence.finetuning.subsets import outcome, subset_curriculum, train_bank
from simfluence.finetuning.tail_patch import tail_patch
from simfluence.runs.tables import TableFingerprints

EVERYTHING = np.ones(N_TRAIN, bool)
PATCHED = 5
"""The size of the batch of a tail-patch: as many as there are sentences that state a fact."""

RECORDED_RUNS = 20


def measure(data: Path) -> None:
    """All stages, the most important first."""
    torch.set_num_threads(1)
    DATA.mkdir(parents=True, exist_ok=True)
    print(
        __doc__, "About 1000 trainings of 5 to 12 s on one core, and half an hour of scores.", file=sys.stderr
    )
    retrain(FACTS, "halves", subsets("halves"), SEEDS, 100)
    score(FACTS)
    simulate()
    patch(FACTS)
    retrain(FACTS, "removals", removal_sets(scores_of("facts")), (0,))
    retrain(FACTS, "leave-one-out", leave_one_out_sets(), SEEDS)
    retrain(FACTS, "5 % left out", subsets("5 % left out"), SEEDS, 100)
    find_planted(FACTS)
    other = copa(data)
    retrain(other, "halves", subsets("halves"), SEEDS, 100)
    score(other)
    retrain(other, "5 % left out", subsets("5 % left out"), SEEDS, 100)
    retrain(FACTS, "halves", subsets("halves"), SEEDS)
    retrain(FACTS, "5 % left out", subsets("5 % left out"), SEEDS)


def retrain(task: Measured, which: str, kept: Mask, seeds: tuple[int, ...], count: int | None = None) -> None:
    """Train until the bank has ``count`` trainings, seed by seed; None: all."""
    file = bank_file(task.name, which)
    done = int(SubsetBank.load(file).trained.sum()) if file.exists() else 0
    if count is None or done < count:
        at_most = None if count is None else count - done
        train_bank(task.configuration(), kept, seeds, file, at_most=at_most)


# ----------------------------------------------------------------------------------------------- scores


def score(task: Measured) -> None:
    """The scores of every method at the weights of one run on everything, and at 10 of its checkpoints."""
    wanted = [method for method in METHODS if not scores_file(task.name, method).exists()]
    if not wanted:
        return
    config = task.configuration()
    context, _ = trained_context(prepare(config), config["run"], EVERYTHING, SCORED_ORDER, checkpoints=10)
    for method in wanted:
        print(f"{task.name}: {method}", file=sys.stderr)
        found = scores_by(context, method)
        found = replace(found, scores=found.scores.astype(np.float32))
        found.save(scores_file(task.name, method))


def scores_by(context: AttributionContext, method: str) -> InfluenceScores:
    """The scores of a method by name; of all but TracIn, at the last checkpoint."""
    if method == "random":
        drawn = np.random.default_rng(0).normal(size=(len(context.train), len(context.test)))
        return InfluenceScores(drawn, "random", tables=context.tables)
    checkpoints = context.checkpoints if method == "tracin" else context.checkpoints[-1:]
    return attribute(replace(context, checkpoints=checkpoints), method)


# -------------------------------------------------------------------------------------------- simulator


def fitted() -> tuple[AutoSimulator, RunSet]:
    """The default simulator of the facts' recorded runs, and these runs."""
    runs = RunSet.load(RECORDED)[:RECORDED_RUNS]
    return AutoSimulator().fit(runs), runs


def simulate() -> None:
    """The simulator as a method: what removing an example from each recorded run that has it would do to the
    final losses, on average; and the final losses of the subsets themselves."""
    files = [simulated_file("facts", fraction) for fraction in ("halves", "5 % left out")]
    if all(file.exists() for file in (scores_file("facts", SIMULATOR), *files)):
        return
    simulator, runs = fitted()
    initial = runs.initial_loss.mean(0)
    rises = np.zeros((len(runs.train), len(runs.test)))
    count = np.zeros(len(runs.train))
    for run in runs:
        used = run.curriculum.used
        edited = [remove(run.curriculum, [int(row)]) for row in used]
        losses = final_loss(simulator.simulate([run.curriculum, *edited], initial))
        rises[used] += losses[1:] - losses[0]
        count[used] += 1
    InfluenceScores(
        (rises / count[:, None]).astype(np.float32),
        "auto",
        "loss",
        provenance={"runs": RECORDED_RUNS, "of": "removals from the recorded runs"},
        tables=TableFingerprints.of(runs.train, runs.test),
    ).save(scores_file("facts", SIMULATOR))
    for fraction in ("halves", "5 % left out"):
        simulate_subsets(simulator, runs, fraction)


def simulate_subsets(simulator: AutoSimulator, runs: RunSet, fraction: str) -> None:
    """The simulated final losses of the curricula that subsets are trained on, float [subset, seed, test]."""
    kept, initial = subsets(fraction), runs.initial_loss.mean(0)
    curricula = [subset_curriculum(row, seed, epochs=3, batch_size=4) for row in kept for seed in SEEDS]
    losses = final_loss(simulator.simulate(curricula, initial)).reshape(len(kept), len(SEEDS), -1)
    save_file({"losses": losses.astype(np.float32)}, simulated_file("facts", fraction))


# ------------------------------------------------------------------------- patches, and planted examples


def patch(task: Measured) -> None:
    """What a step of the run's optimizer on a method's top examples takes off each test example's loss."""
    file = DATA / f"{task.name}-tail-patch.csv"
    if file.exists():
        return
    config, parts = task.configuration(), []
    prepared = prepare(config)
    _, optimizer = trained_context(prepared, config["run"], EVERYTHING, SCORED_ORDER)
    for method, scores in scores_of(task.name).items():
        chosen = np.argsort(-scores.scores, axis=0, kind="stable")[:PATCHED]
        falls = tail_patch(prepared, optimizer, chosen, progress=True)
        parts.append(pd.DataFrame({"method": method, "test": np.arange(len(falls)), "fall": falls}))
    pd.concat(parts).to_csv(file, index=False, float_format="%.6g")


def find_planted(task: Measured, plantings: int = PLANTINGS, methods: Sequence[str] = SUSPECTED_BY) -> None:
    """How suspicious every training example is to each method, in sets with planted ones."""
    file = DATA / f"{task.name}-planted.parquet"
    done = pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=["kind", "planting", "method"])
    config = task.configuration()
    for planting in range(plantings):
        for kind, plant in (("mislabelled", mislabelled), ("triggered", triggered)):
            able = OF_LABELS if kind == "mislabelled" else SUSPECTED_BY
            there = done[(done["kind"] == kind) & (done["planting"] == planting)]["method"]
            if not (wanted := [method for method in methods if method in able and method not in set(there)]):
                continue
            print(f"{task.name}: {kind}, planting {planting}: {', '.join(wanted)}", file=sys.stderr)
            prepared, planted = plant(prepare(config), planting)
            found = suspicions(prepared, config["run"], kind, SCORED_ORDER + 1 + planting, wanted)
            rows = pd.concat(
                [
                    pd.DataFrame({"method": method, "by": by, "suspicion": values.astype(np.float32)})
                    for (method, by), values in found.items()
                    if method not in set(there)
                ]
            )
            rows["planted"] = np.tile(planted, len(rows) // len(planted))
            rows["right"] = float(outcome(prepared).right.mean())
            rows = rows.assign(kind=kind, planting=planting)
            done = pd.concat([done, rows]) if len(done) else rows
            done.to_parquet(file, index=False, compression="zstd")


def suspicions(
    prepared: Prepared, options: dict[str, Any], kind: str, seed: int, methods: Sequence[str]
) -> dict[tuple[str, str], npt.NDArray[np.floating]]:
    """(method, way of suspecting) → suspicion [train], after training in an order of this seed.

    Of wrong labels: the self-influence and minus the mean score on test examples, and beside the methods the
    example's own loss. Of triggers: the mean score on test examples with the trigger.
    """
    context, _ = trained_context(prepared, options, EVERYTHING, seed)
    found: dict[tuple[str, str], npt.NDArray[np.floating]] = {}
    if kind == "triggered":
        for method in methods:
            found[method, "mean score on test examples with the trigger"] = scores_by(
                context, method
            ).scores.mean(1)
        return found
    with torch.no_grad():
        own = [float(prepared.model.losses([example])) for example in context.train]
    found["own loss", "own loss"] = np.array(own)
    both = replace(
        context,
        test=[*context.train, *context.test],
        test_texts=[*context.train_texts, *context.test_texts],
    )
    for method in methods:
        scores = scores_by(both, method).scores
        if method != "gradient_cosine":  # whose own similarity is 1
            found[method, "self-influence"] = np.diagonal(scores)
        found[method, "minus the mean score on test examples"] = -scores[:, len(own) :].mean(1)
    return found
