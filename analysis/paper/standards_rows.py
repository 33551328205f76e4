"""The rows of table B2, one for each task, standard, setting and method, from the raw files alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import load_file
from standards_planting import PLANTINGS
from standards_tasks import (
    DATA,
    DRAWS,
    FRACTIONS,
    METHODS,
    NAMES,
    OF_LABELS,
    RECORDED,
    REMOVED_BY,
    REMOVED_FOR,
    SEEDS,
    SHARES,
    SUSPECTED_BY,
    bank_file,
    leave_one_out_sets,
    left_out,
    random_removals,
    removal_sets,
    scores_of,
    simulated_file,
    subsets,
    without,
)

from simfluence.evaluation.metrics import across_runs_spearman
from simfluence.evaluation.standards import (
    Estimate,
    SubsetBank,
    agreement,
    auc,
    brittleness,
    ceiling,
    lds,
    leave_one_out_correlation,
    mean_with_interval,
    recall_at_k,
    reciprocal_rank,
    removal_curve,
    top_examples,
)
from simfluence.runs.storage import read_examples
from simfluence.runs.tables import TableFingerprints

Row = dict[str, Any]
BANKS = (
    *(("facts", "halves", len(SEEDS)), ("facts", "5 % left out", len(SEEDS)), ("facts", "removals", 1)),
    *(("facts", "leave-one-out", len(SEEDS)), ("copa", "halves", 1)),
    ("copa", "5 % left out", 1),
)
"""Task, which bank, and how many seeds there shall be."""

SIMULATED = "auto, simulating each subset"
OTHER_ORDERS = "auto, simulating in other orders"
STATING = "the stating sentences, as known"
CEILING = "ceiling: free of noise"
BETWEEN_SEEDS = "one seed with another"
RANDOM_REMOVAL = "random removal"


def all_rows() -> pd.DataFrame:
    """Everything that is measured. Columns: task, standard, setting, method, mean, low, high, n, of."""
    found = [
        row
        for task in ("facts", "copa")
        for part in (lds_rows, removal_rows, leave_one_out_rows, patch_rows, retrieval_rows, planted_rows)
        for row in part(task)
    ]
    return pd.DataFrame(found)


def row(task: str, standard: str, setting: str, method: str, values: npt.ArrayLike, of: str) -> Row:
    """The mean over test examples with its interval. of : what it was measured on, in words."""
    return _row(task, standard, setting, method, mean_with_interval(values), of)


def _row(task: str, standard: str, setting: str, method: str, found: Estimate, of: str) -> Row:
    named = {"task": task, "standard": standard, "setting": setting, "method": method}
    return {**named, **found._asdict(), "of": of}


def bank_of(task: str, which: str) -> SubsetBank | None:
    """The part of a bank that is trained; None if there is none."""
    file = bank_file(task, which)
    return SubsetBank.load(file).complete() if file.exists() else None


# -------------------------------------------------------------------------------------------------- LDS


def lds_rows(task: str) -> Iterator[Row]:
    """LDS of every method on both kinds of subsets, of the simulator's own predictions, and the ceiling."""
    for fraction in FRACTIONS:
        if (bank := bank_of(task, fraction)) is None:
            continue
        of, losses = bank.describe(), bank.mean_losses()
        for method, scores in scores_of(task).items():
            yield row(task, "LDS", fraction, method, lds(scores.scores, bank.kept, losses), of)
        if task == "facts":
            known = stating().astype(np.float64)
            yield row(task, "LDS", fraction, STATING, lds(known, bank.kept, losses), of)
        for method, found in simulated(task, fraction, bank).items():
            yield row(task, "LDS", fraction, method, found, of)
        if len(bank.seeds) > 1:
            between = agreement(bank.losses)
            yield row(task, "LDS", fraction, BETWEEN_SEEDS, between, of)
            yield row(task, "LDS", fraction, CEILING, ceiling(between, len(bank.seeds)), of)


def simulated(task: str, fraction: str, bank: SubsetBank) -> dict[str, npt.NDArray[np.float64]]:
    """Correlation over subsets of retrained and simulated losses [test]: where the simulator is given the
    order of the examples, and where it is given those of other seeds.
    """
    if not simulated_file(task, fraction).exists():
        return {}
    place = {tuple(kept): number for number, kept in enumerate(subsets(fraction))}
    rows = [place[tuple(kept)] for kept in bank.kept]
    predicted = load_file(simulated_file(task, fraction))["losses"][rows].astype(np.float64)
    seeds = {
        SIMULATED: [SEEDS.index(seed) for seed in bank.seeds],
        OTHER_ORDERS: [place for place, seed in enumerate(SEEDS) if seed not in bank.seeds],
    }
    return {
        method: across_runs_spearman(bank.mean_losses(), predicted[:, which].mean(1))
        for method, which in seeds.items()
        if which
    }


def stating() -> npt.NDArray[np.bool_]:
    """bool [train, test]: which sentences state the fact that a test example asks for."""
    train, test = read_examples(RECORDED)
    return np.equal.outer(train.frame["group"].to_numpy(), test.frame["group"].to_numpy())


# --------------------------------------------------------------------------------------------- removals


def removal_rows(task: str) -> Iterator[Row]:
    """The rise of the loss, and the answers that flip, where a method's top is removed; beside random
    removals of as many examples."""
    if (bank := bank_of(task, "removals")) is None:
        return
    losses, right = bank.mean_losses(), bank.right[:, 0]
    place = {tuple(kept): number for number, kept in enumerate(bank.kept)}
    whole = place[tuple(without([]))]
    scores = scores_of(task)
    for share in SHARES:
        drawn = [place[key] for key in map(tuple, random_removals(share)) if key in place]
        if len(drawn) < DRAWS:
            continue
        setting = f"top {share:.0%}"
        of = f"{bank.task}, {bank.model}: {DRAWS} random removals, one seed, {bank.optimizer}"
        yield row(task, "loss rise", setting, RANDOM_REMOVAL, losses[drawn].mean(0) - losses[whole], of)
        flips = np.stack([brittleness(right[whole], right[draw]) for draw in drawn]).mean(0)
        yield row(task, "flips", setting, RANDOM_REMOVAL, flips, of)
        for method in REMOVED_BY:
            removed = [
                place.get(tuple(without(top_examples(scores[method].scores[:, z], share))))
                for z in range(REMOVED_FOR)
            ]
            tests = [z for z, number in enumerate(removed) if number is not None]
            rows = [number for number in removed if number is not None]
            if not tests:
                continue
            rise = removal_curve(losses[rows, tests][None], losses[drawn][:, tests][None])[0]
            yield row(task, "loss rise", setting, method, rise, of)
            flips = brittleness(right[whole, tests], right[rows, tests])
            yield row(task, "flips", setting, method, flips, of)


def leave_one_out_rows(task: str) -> Iterator[Row]:
    """Correlation of scores with the rise of the loss, over single examples."""
    if (bank := bank_of(task, "leave-one-out")) is None:
        return
    rows = [number for number, kept in enumerate(bank.kept) if not kept.all()]
    whole = int(np.flatnonzero(bank.kept.all(1))[0])
    out = np.array([int(np.argmin(bank.kept[number])) for number in rows])
    assert set(out) <= set(left_out())
    setting, losses = "single examples", bank.mean_losses()
    of = f"{len(out)} examples, {len(bank.seeds)} seed{'s' * (len(bank.seeds) > 1)}, {bank.optimizer}"
    for method, scores in scores_of(task).items():
        found = leave_one_out_correlation(scores.scores, out, losses[rows], losses[whole])
        yield row(task, "leave-one-out ρ", setting, method, found, of)
    if len(bank.seeds) > 1:
        between = agreement(bank.losses[rows] - bank.losses[whole])
        yield row(task, "leave-one-out ρ", setting, BETWEEN_SEEDS, between, of)
        yield row(task, "leave-one-out ρ", setting, CEILING, ceiling(between, len(bank.seeds)), of)


# ------------------------------------------------------------------------ without retraining, or planted


def patch_rows(task: str) -> Iterator[Row]:
    """What a step on the top examples takes off the loss."""
    file = DATA / f"{task}-tail-patch.csv"
    if not file.exists():
        return
    frame = pd.read_csv(file)
    for method, falls in frame.groupby("method", sort=False)["fall"]:
        yield row(task, "tail-patch", "top 5", str(method), falls, "one step of the run's optimizer on 5")


def retrieval_rows(task: str) -> Iterator[Row]:
    """Whether the sentences that state a fact are found; of the facts alone."""
    if task != "facts":
        return
    known, tables = stating(), TableFingerprints.of(*read_examples(RECORDED))
    of = f"{known.sum(0).max()} of {len(known)} sentences state the fact"
    for method, scores in scores_of(task).items():
        scores.tables.check(tables, "the scores", "the recorded runs")
        for k in (5, 10):
            yield row(task, f"recall@{k}", "stating", method, recall_at_k(scores.scores, known, k), of)
        yield row(task, "MRR", "stating", method, reciprocal_rank(scores.scores, known), of)


def planted_rows(task: str) -> Iterator[Row]:
    """The area under the curve, the mean over plantings; ``low`` and ``high`` are the least and the most."""
    file = DATA / f"{task}-planted.parquet"
    if not file.exists():
        return
    frame = pd.read_parquet(file)
    for (kind, method, by), rows in frame.groupby(["kind", "method", "by"], sort=False):
        areas = [auc(one["suspicion"], one["planted"]) for _, one in rows.groupby("planting")]
        found = Estimate(float(np.mean(areas)), min(areas), max(areas), len(areas))
        many = rows["planted"].sum() // len(areas)
        answers = "right" if kind == "mislabelled" else "the forced one"
        share, train = rows["right"].mean(), len(rows) // len(areas)
        of = f"{many} of {train} planted; {share:.0%} of test answers are {answers}"
        yield _row(task, f"AUC {kind}", by, method, found, of)


def _planned(which: str) -> int:
    """The number of subsets of a bank."""
    if which == "removals":
        return len(removal_sets(scores_of("facts")))
    return len(leave_one_out_sets() if which == "leave-one-out" else subsets(which))


def unmeasured() -> list[str]:
    """What ``--measure`` would go on with: a line each."""
    lines = []
    for task, which, seeds in BANKS:
        file = bank_file(task, which)
        done = int(SubsetBank.load(file).trained.sum()) if file.exists() else 0
        planned = _planned(which) * seeds
        if done < planned:
            lines.append(f"{task}, {which}: {done} of {planned} retrainings are done")
    for task in ("facts", "copa"):
        if absent := [NAMES[method] for method in METHODS if method not in scores_of(task)]:
            lines.append(f"{task}: no scores yet by {'; '.join(absent)}")
    if not (DATA / "facts-tail-patch.csv").exists():
        lines.append("facts: no tail-patch yet")
    file = DATA / "facts-planted.parquet"
    done = (
        len(pd.read_parquet(file, columns=["kind", "planting", "method"]).drop_duplicates())
        if file.exists()
        else 0
    )
    if done < (planned := PLANTINGS * (1 + len(OF_LABELS) + len(SUSPECTED_BY))):
        lines.append(f"facts, planted examples: {done} of {planned} methods and plantings are done")
    return lines
