"""The stages that scale.py measures, each in a process of its own.

    python analysis/benchmarks/scale_stages.py STAGE N FOLDER

A stage loads the model, does its work on what earlier stages left in FOLDER/n-N/, measures a forward and
backward pass over a few of the training examples before and after, and writes what it took to
FOLDER/n-N/STAGE.json. One that is there is not done again; a recording and a store go on where they were cut
off, and what they took before that is not known.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import trained_runs
from measuring import measured
from scale_texts import BATCH, TESTS, TOKENS, TOPICS, write_texts

from simfluence import AutoSimulator, Edit, Fitted, RunSet, fit, what_if
from simfluence.attribution import AttributionContext, Checkpoint
from simfluence.attribution.freed_memory import give_back
from simfluence.attribution.store import stored_scores
from simfluence.attribution.store_writing import write_store
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.finetuning.experiment import Prepared, prepare, record_runs
from simfluence.finetuning.retrain import retrain_as_recorded
from simfluence.questions.rank import rank
from simfluence.runs import ExampleTable
from simfluence.runs.tables import TableFingerprints
from simfluence.scores import InfluenceScores
from simfluence.whatif import Retrain

SAMPLED, FEWER = 96, 24
"""Training examples that a pass is measured on; fewer beside stages that take seconds."""
WITHOUT_MODEL = ("fit", "rank", "what-ifs")
BUDGET, FEW = 0.1, 300
"""Evaluations take at most a tenth of training's time; but of 1000 examples that leaves two of 100 tests, and
nothing to learn from, so that they get three tenths."""
STORE = "gradients"
OPTIMIZER = {"class": "AdamW", "betas": [0.9, 0.999], "eps": 1e-8}
"""As a recorder logs it."""
NAMES = [f"topic-{number:02d}" for number in range(TOPICS)]
VERIFIED = [
    Edit("remove", groups=NAMES[3]),
    Edit("order", groups=NAMES),
    Edit("repeat", groups=NAMES[8], times=3),
]
EDITS = [
    *VERIFIED,
    Edit("remove", groups=NAMES[:5]),
    Edit("keep", groups=NAMES[:10]),
    Edit("put_before", groups=NAMES[5], before_groups=NAMES[6:]),
    Edit("repeat", groups=NAMES[12:16], times=2),
    Edit("sample", count=500),
    Edit("shuffle", seed=1),
    Edit("remove", groups=NAMES[11], schedule="keep"),
]


@dataclass(frozen=True)
class Case:
    """One size: where its files lie, and how its run is recorded."""

    n: int
    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def store(self) -> Path:
        return self.folder / STORE

    @property
    def config(self) -> dict[str, Any]:
        train, test = self.folder / "train.jsonl", self.folder.parent / "test.jsonl"
        write_texts(train, self.n, range(TOPICS), seed=3)
        write_texts(test, TESTS, range(TOPICS), seed=4)
        source = {"path": str(train), "test_path": str(test), "n_train": self.n, "n_test": TESTS}
        return {
            "task": {"source": "instructions", **source},
            "model": {"name": str(self.folder.parent / "model"), "max_length": TOKENS},
            "tuning": {"name": "full"},
            "run": {
                "seed": 0,
                "design": {"name": "everything", "epochs": 1, "batch_size": BATCH},
                "optimizer": {"name": "adamw", "lr": 1e-4, "schedule": "linear", "weight_decay": 0.01},
                "evaluate_within": max(BUDGET, FEW / self.n),
            },
        }


def passes(prepared: Prepared, count: int) -> None:
    """A forward and backward pass over some training examples, in the batches of training."""
    model, examples = prepared.model, prepared.task.train[:count]
    parameters = [p for p in model.parameters() if p.requires_grad]
    for start in range(0, len(examples), BATCH):
        torch.autograd.grad(model.losses(examples[start : start + BATCH]).mean(), parameters)


def initial_context(
    model: Any,
    train: Sequence[Any],
    test: Sequence[Any],
    tables: TableFingerprints | None = None,
    optimizer: Mapping[str, Any] = OPTIMIZER,
) -> AttributionContext:
    """The model's present weights, as a run begins with them."""
    checkpoint = Checkpoint(0, np.nan, lambda module: None, optimizer=optimizer)
    return AttributionContext(
        objective=model, train=train, test=test, train_texts=[], test_texts=[], checkpoints=[checkpoint],
        tokens=str.split, batch=BATCH, optimizer=optimizer, tables=tables or TableFingerprints(),
    )  # fmt: skip


def resident() -> float:
    """MB in memory, what was freed given back first."""
    gc.collect()
    give_back()
    return float(psutil.Process().memory_info().rss / 1e6)


def disk(place: Path) -> float:
    """MB of a file, or of all in a folder."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


# ------------------------------------------------------------------------------------------- stages


def record(case: Case) -> dict[str, Any]:
    record_runs(case.config, case.runs, count=1, processes=1, device="cpu", progress=False)
    run = RunSet.load(case.runs)[0]
    moved = float((run.initial_loss - run.loss[-1]).mean())
    return {
        "disk": disk(case.runs),
        "evaluations": len(run.evaluated),
        "loss": float(run.initial_loss.mean()),
        "lowered": moved,
    }


def store(case: Case) -> dict[str, Any]:
    """Before training or after it: the weights are the initial ones."""
    prepared = prepare(case.config, "cpu")
    train, test = prepared.task.train, prepared.task.test
    tables = TableFingerprints.of(ExampleTable.of(train), ExampleTable.of(test))
    context = initial_context(prepared.model, train, test, tables)
    print(write_store(context, case.store, batch_size=BATCH), flush=True)
    return {"disk": disk(case.store)}


def scores(case: Case) -> dict[str, Any]:
    context = recorded_context(case.runs, RunSet.load(case.runs)[0], "initial", "cpu")
    found = stored_scores(context, case.store)
    found.save(case.folder / "scores.safetensors")
    return {"disk": disk(case.folder / "scores.safetensors"), "tests": found.scores.shape[1]}


def fitting(case: Case) -> dict[str, Any]:
    runs, found = RunSet.load(case.runs), InfluenceScores.load(case.folder / "scores.safetensors")
    fitted = fit(runs, AutoSimulator(found))
    fitted.save(case.folder / "fitted.safetensors")
    return {"explained": float(fitted.simulator.explained_), "taken": fitted.simulator.taken_}


def ranking(case: Case) -> dict[str, Any]:
    runs, fitted = RunSet.load(case.runs), Fitted.load(case.folder / "fitted.safetensors")
    frame = rank(fitted, runs[0], train=runs.train, test=runs.test, of="all", first_order=True)
    frame.to_csv(case.folder / "rank.csv", index=False)
    return {"ranked": len(frame)}


def asking(case: Case) -> dict[str, Any]:
    runs, fitted = RunSet.load(case.runs), Fitted.load(case.folder / "fitted.safetensors")
    for edit in EDITS:
        answer = what_if(fitted, runs[0], edit, train=runs.train, test=runs.test)
        print(edit, f"{answer.changes['change'].mean():+.4f}", flush=True)
    return {"edits": len(EDITS)}


def retraining(case: Case) -> dict[str, Any]:
    """Train again on the edited curricula; a recording that is there is not made again."""
    runs = RunSet.load(case.runs)
    for edit in VERIFIED:
        edited = edit.apply(runs[0], runs.train, runs.test)
        retrained(case, edit)(runs[0], edited, edit.schedule)
    return {"disk": disk(case.folder / "runs-whatif")}


def retrained(case: Case, edit: Edit) -> Retrain:
    return retrain_as_recorded(str(case.runs), str(edit)[:40], "cpu")


def verifying(case: Case) -> dict[str, Any]:
    """Predictions against retraining: Pearson and sign over test examples, the share in the band."""
    runs, fitted = RunSet.load(case.runs), Fitted.load(case.folder / "fitted.safetensors")
    rows = []
    for edit in VERIFIED:
        asked: dict[str, Any] = {"train": runs.train, "test": runs.test, "retrain": retrained(case, edit)}
        answer = what_if(fitted, runs[0], edit, **asked)
        frame = answer.changes
        frame.to_csv(case.folder / f"verified-{edit.name}.csv", index=False)
        predicted, true = frame["change"], frame["true_change"]
        rows.append(
            {
                "what if": edit.name,
                "predicted": float(predicted.mean()),
                "retrained": float(true.mean()),
                "Pearson": float(np.corrcoef(predicted, true)[0, 1]),
                "sign": float((np.sign(predicted) == np.sign(true)).mean()),
                "in band": float(frame["true_change"].between(frame["low"], frame["high"]).mean()),
            }
        )
        print(rows[-1], flush=True)
    return {"rows": rows}


STAGES: dict[str, Callable[[Case], dict[str, Any]]] = {
    "record": record,
    "store": store,
    "scores": scores,
    "fit": fitting,
    "rank": ranking,
    "what-ifs": asking,
    "retrain": retraining,
    "verify": verifying,
}
MEASURED = tuple(STAGES)[:6]
"""The others are the check of one size."""


def compile_kernels() -> None:
    """What a fit and its questions compile at their first use is not counted."""
    runs, given = trained_runs(40, 6, 1, 60, 3)
    fitted = fit(runs, AutoSimulator(given))
    rank(fitted, runs[0], train=runs.train, test=runs.test, of="all", first_order=True)
    used = runs.train.ids[runs[0].curriculum.examples[0]]
    what_if(fitted, runs[0], Edit("remove", ids=[used]), train=runs.train, test=runs.test)


def main(stage: str, n: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = Case(int(n), Path(folder).resolve() / f"n-{n}")
    file = case.folder / f"{stage}.json"
    if file.exists():
        return
    case.folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(case.config, "cpu")
    count = SAMPLED if stage in ("record", "store") else FEWER
    if stage in WITHOUT_MODEL:
        compile_kernels()
    before = resident()
    passes(prepared, FEWER)  # the first time, much is prepared
    _, unit = measured(lambda: passes(prepared, count))
    freed = resident() - before
    facts, found = measured(lambda: STAGES[stage](case))
    _, again = measured(lambda: passes(prepared, count))
    about = {
        "seconds": found.wall,
        "CPU seconds": found.cpu,
        "pass, CPU seconds": (unit.cpu + again.cpu) / 2 * case.n / count,
        "passes before and after": [unit.cpu, again.cpu],
        "memory": found.memory + max(freed, 0.0),
        "memory of a pass": unit.memory + max(freed, 0.0),
        "load": os.getloadavg()[0],
        **facts,
    }
    file.write_text(json.dumps(about, indent=1))
    print(stage, n, about, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
