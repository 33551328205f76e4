"""What limit.py shows is measured here: one recorded run, trained again without some of its examples, and
what methods predict of that.

The truth is the run's own training, in its own order, with weight 0 for the examples that are left out (their
batches are still divided by their size), by torch's own optimizer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from protocol import RESULTS, ROOT

from simfluence.attribution import InfluenceScores, along_run, attribute
from simfluence.attribution.registry import AttributionContext
from simfluence.curriculum import remove
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.finetuning.experiment import prepare
from simfluence.finetuning.models import Model
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.runs import Run, RunSet
from simfluence.simulators.auto import AutoSimulator

DATA = RESULTS / "data"
SETS = {"facts": "facts-minilm", "copa": "copa-minilm"}
EDITS = {"one example": (1, 8), "5 %": (0.05, 8), "half": (0.5, 12)}
"""Kind of edit → how many examples, or which share of the run's, are left out; and how many such edits."""
N_TEST = 6
"""The first so many test examples are predicted by all methods."""
ALONG = (0, 24, 48, 72)


def base_run(name: str) -> tuple[RunSet, Run]:
    """The recorded runs of a set, and the one that is trained again."""
    runs = RunSet.load(ROOT / "runs" / SETS[name])
    return runs, runs[0]


def edits(run: Run) -> Iterator[tuple[str, list[int]]]:
    """(kind, the examples that are left out), the same at every call. The first leaves out nothing."""
    yield "none", []
    used, rng = np.unique(run.curriculum.examples), np.random.default_rng(0)
    singly = rng.permutation(used)
    for number in range(max(count for _, count in EDITS.values())):
        for kind, (size, count) in EDITS.items():
            drawn = (
                singly[[number]] if size == 1 else rng.choice(used, round(size * len(used)), replace=False)
            )
            if number < count:
                yield kind, sorted(map(int, drawn))


# ------------------------------------------------------------------------------------ the truth


def retrained(name: str, data: Path) -> None:
    """data/limit-NAME.csv, one row an edit: which examples were left out, and the final losses [test]."""
    file, (_, run) = DATA / f"limit-{name}.csv", base_run(name)
    known = len(pd.read_csv(file)) if file.exists() else 0
    for number, (kind, left) in enumerate(edits(run)):
        if number < known:
            continue
        start = time.perf_counter()
        losses = losses_without(at(run, data), left)
        row = {"kind": kind, "left out": " ".join(map(str, left))}
        row |= {f"z{z}": f"{loss:.7g}" for z, loss in enumerate(losses)}
        pd.DataFrame([row]).to_csv(file, mode="a", header=number == 0, index=False)
        _say(f"{name}: {kind}, {number}, {time.perf_counter() - start:.1f} s")


def losses_without(run: Run, left: Sequence[int]) -> np.ndarray:
    """The final losses [test] of the run with weight 0 for some examples."""
    prepared = prepare(run.config, "cpu")
    model, task = prepared.model, prepared.task
    model.load_state_dict(prepared.initial)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(trained, len(run), **run.config["run"]["optimizer"])
    model.train()
    for batch in run.curriculum:
        counted = [task.train[row] for row in batch if row not in left]
        optimizer.zero_grad(set_to_none=False)
        if counted:
            (model.losses(counted).sum() / len(batch)).backward()
        optimizer.step()
        schedule.step()
    return _losses(model, task.test)


def _losses(model: Model, test: Sequence) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        parts = [model.losses(test[start : start + 10]) for start in range(0, len(test), 10)]
    return torch.cat(parts).numpy()


def at(run: Run, data: Path) -> Run:
    """The run with the path that its task's file has here."""
    task = dict(run.config["task"])
    if "path" in task:
        task["path"] = str(data / task["path"])
    return replace(run, config={**run.config, "task": task})


# ------------------------------------------------------------------------------------ the scores


@dataclass
class Passes:
    """Examples that went through the model: with a gradient, and without."""

    gradients: int = 0
    forward: int = 0


@contextmanager
def counted(model: Model) -> Iterator[Passes]:
    """Counts the examples of every call of the model inside."""
    found = Passes()

    def count(module: Model, inputs: tuple, output: object) -> None:
        if torch.is_grad_enabled():
            found.gradients += len(inputs[0])
        else:
            found.forward += len(inputs[0])

    handle = model.register_forward_hook(count)
    try:
        yield found
    finally:
        handle.remove()


def score(name: str, data: Path, only: Sequence[str] = ()) -> None:
    """data/limit-NAME-METHOD.safetensors: scores [train, test] or [step, train, test], with their cost.

    only : these methods; (): all.
    """
    path, (_, run) = ROOT / "runs" / SETS[name], base_run(name)
    every = {
        "gradient_step": (lambda c: attribute(c, "gradient_step"), [0], None),
        "metagradients": (lambda c: attribute(c, "metagradients", keep_every=1), [0], N_TEST),
        "unrolled": (lambda c: attribute(c, "unrolled", keep_every=1), [0], N_TEST),
        "unrolled_held": (lambda c: attribute(c, "unrolled", hold_sizes=True, keep_every=1), [0], N_TEST),
        "ekfac": (lambda c: attribute(c, "ekfac"), [len(run)], N_TEST),
        "gradient_step_along": (lambda c: along_run(c, "gradient_step"), list(ALONG), N_TEST),
        "tracin": (lambda c: attribute(c, "tracin"), 10, N_TEST),
    }
    for method, (scores_of, steps, n_test) in every.items():
        file = DATA / f"limit-{name}-{method}.safetensors"
        if file.exists() or (only and method not in only):
            continue
        context = recorded_context(path, at(run, data), steps, "cpu")
        short = replace(run, metrics={"loss": run.loss[:, :n_test]})
        context = replace(context, test=context.test[:n_test], run=short)
        if n_test is not None and not method.startswith(("unrolled", "meta")):
            context = _of_used(context, run)
        _keep(file, scores_of, context, run)


def _of_used(context: AttributionContext, run: Run) -> AttributionContext:
    """Only the training examples that the run used: others have no part in it."""
    used = np.unique(run.curriculum.examples)
    return replace(
        context,
        train=[context.train[i] for i in used],
        train_texts=[context.train_texts[i] for i in used],
    )


def _keep(file: Path, scores_of, context: AttributionContext, run: Run) -> None:
    start = time.perf_counter()
    model = context.objective.module
    with counted(model) as passes:
        found: InfluenceScores = scores_of(context)
    seconds = time.perf_counter() - start
    scores = found.scores
    if scores.shape[-2] < run.curriculum.n_examples:  # the others have no score
        whole = np.zeros((*scores.shape[:-2], run.curriculum.n_examples, scores.shape[-1]))
        whole[..., np.unique(run.curriculum.examples), :] = scores
        scores = whole
    about = {
        "gradients": passes.gradients, "forward": passes.forward, "seconds": round(seconds, 1),
        "hessian_products": found.provenance.get("hessian_products", 0),
    }  # fmt: skip
    replace(found, scores=scores.astype(np.float32), provenance=about, covers=()).save(file)
    _say(f"{file.name}: {about}")


# -------------------------------------------------------------------------------- the simulators


def simulate(name: str) -> None:
    """data/limit-NAME-simulators.csv: final losses as simulators predict them, a row an edit."""
    file, (runs, run) = DATA / f"limit-{name}-simulators.csv", base_run(name)
    if file.exists():
        return
    scores = InfluenceScores.load(DATA / f"limit-{name}-gradient_step.safetensors")
    candidates = {
        "simulator, 32 runs": (AutoSimulator(), runs),
        "simulator, this run and scores": (AutoSimulator(scores), RunSet([run], runs.train, runs.test)),
    }
    all_edits = list(edits(run))
    curricula = [
        remove(run.curriculum, left, refill=False) if left else run.curriculum for _, left in all_edits
    ]
    rows = []
    for method, (simulator, recorded) in candidates.items():
        start = time.perf_counter()
        predicted = simulator.fit(recorded).simulate(curricula, run.initial_loss)
        _say(f"{name}: {method}, {time.perf_counter() - start:.0f} s")
        for (kind, left), curriculum, losses in zip(all_edits, curricula, predicted, strict=True):
            row = {"method": method, "kind": kind, "left out": " ".join(map(str, left))}
            final = losses[len(curriculum)][:N_TEST]
            rows.append(row | {f"z{z}": f"{loss:.7g}" for z, loss in enumerate(final)})
    pd.DataFrame(rows).to_csv(file, index=False)


def measure(data: Path, sets: Sequence[str]) -> None:
    """All that is not measured yet."""
    DATA.mkdir(parents=True, exist_ok=True)
    number = 1 + sum(count for _, count in EDITS.values())
    _say(
        f"for each of {len(sets)} sets: {number} retrainings of 96 steps, about 8 s each on one core;"
        f" metagradients of {N_TEST} test examples, about 2 minutes; other scores and simulators, about 4"
        " minutes; 6 GB of memory"
    )
    for name in sets:
        score(name, data)
        retrained(name, data)
        simulate(name)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
