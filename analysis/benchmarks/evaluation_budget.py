"""What evaluations within a budget cost, and what simulators lose by them.

python analysis/benchmarks/evaluation_budget.py

1. A small causal language model (GPT-2, 2 layers of 64) is trained for 200 steps of 8 sequences of 128
   tokens, bare and recorded with ``evaluate_within`` at several budgets, by turns in one process; there are
   40 test sequences.
   "evaluations" is the time in the loss function of test examples over the time of all else; "recording" the
   CPU time beside that of bare training, which has the recorder's own work in it. Medians.
2. Of openbookqa-minilm, 1 or 8 runs are known only at the steps that the budget would have chosen, an
   evaluation taking 1.33 times a step as recording.md measured it. The default simulator is fitted to them,
   with the scores before training, and predicts the 12 last runs.
3. Of the same runs, a share of the test examples is known at each evaluation, in turn, as
   ``evaluate_subset`` records them; all are at the first and the last.

Writes evaluation_budget.csv and evaluation_budget.md beside this script.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from common import environment, write
from transformers import GPT2Config, GPT2LMHeadModel

from simfluence import RunSet
from simfluence.evaluation import metrics
from simfluence.recording import RunRecorder
from simfluence.recording.budget import Budget
from simfluence.recording.subset import Rotation
from simfluence.scores import INITIAL_SCORES, InfluenceScores
from simfluence.simulators import AutoSimulator

SHARES = (0.05, 0.1, 0.2, 0.5, None)
"""Budgets; None: every step is evaluated."""

STEPS, BATCH, TOKENS, N_TRAIN, N_TEST, ROUNDS = 200, 8, 128, 200, 40, 3
COST = 1.33
"""Of an evaluation, in steps: "evaluating 40 tests every step / training" in recording.md."""

SUBSETS = (1.0, 0.5, 0.25, 0.1, 0.05)
"""Shares of the test examples evaluated at a time."""

SET = Path(__file__).resolve().parents[2] / "runs" / "openbookqa-minilm"


def sequences(n: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{"id": f"{seed}-{i}", "tokens": rng.integers(0, 500, TOKENS).tolist()} for i in range(n)]


TRAIN, TEST = sequences(N_TRAIN, 0), sequences(N_TEST, 1)


def losses(model: torch.nn.Module, examples: list[dict]) -> torch.Tensor:
    ids = torch.tensor([example["tokens"] for example in examples])
    logits = model(ids).logits[:, :-1]
    every = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return every.mean(1)


@dataclass(frozen=True)
class Taken:
    """What a training took: CPU seconds, the time in evaluations over that of all else, and their number."""

    cpu: float
    share: float = 0.0
    evaluations: int = 0


def trained(share: float | str | None) -> Taken:
    """share : a budget; None: every step is evaluated; "bare": nothing is recorded."""
    torch.manual_seed(0)
    sizes = {"n_positions": TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=500, bos_token_id=0, eos_token_id=0, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    order = np.random.default_rng(0).integers(0, N_TRAIN, (STEPS, BATCH))
    evaluating = 0.0

    def timed(model: torch.nn.Module, examples: list[dict]) -> torch.Tensor:
        nonlocal evaluating
        began = time.perf_counter()
        found = losses(model, examples)
        evaluating += time.perf_counter() - began
        return found

    def step(rows: np.ndarray) -> list[dict]:
        batch = [TRAIN[row] for row in rows]
        loss = losses(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return batch

    began, wall = time.process_time(), time.perf_counter()
    if share == "bare":
        for rows in order:
            step(rows)
        return Taken(time.process_time() - began)
    with tempfile.TemporaryDirectory() as folder:
        recorder = RunRecorder(folder, train=TRAIN, test=TEST)
        options = {"optimizer": optimizer, "total_steps": STEPS, "evaluate_within": share}
        with recorder.run("run", model=model, loss=timed, **options) as run:
            for rows in order:
                run.step([example["id"] for example in step(rows)])
        cpu, rest = time.process_time() - began, time.perf_counter() - wall - evaluating
        return Taken(cpu, evaluating / rest, len(RunSet.load(folder)[0].evaluated))


def overhead() -> tuple[pd.DataFrame, float]:
    """The table, and the CPU seconds of a bare step."""
    kinds = ("bare", *SHARES)
    trained("bare")  # what is slow the first time
    found: dict[float | str | None, list[Taken]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            found[kind].append(trained(kind))
    rows = []
    for share in SHARES:
        more = [each.cpu / bare.cpu - 1 for each, bare in zip(found[share], found["bare"], strict=True)]
        rows.append(
            {
                "budget": named(share),
                "evaluations (% of the time of all else)": 100 * median(t.share for t in found[share]),
                "recording (% more CPU time)": 100 * median(more),
                "number of evaluations": median(t.evaluations for t in found[share]),
            }
        )
    return pd.DataFrame(rows), median(t.cpu for t in found["bare"]) / STEPS


def named(share: float | None) -> str:
    return "every step" if share is None else f"{share:.0%}"


def chosen_steps(share: float | None, steps: int) -> list[int]:
    """The steps that a budget would have had evaluated, by a clock on which a step takes a second."""
    if share is None:
        return list(range(steps + 1))
    now = 0.0

    def evaluator(model: object, processes: object) -> dict:
        nonlocal now
        now += COST
        return {}

    budget = Budget(share, steps, lambda: now)
    evaluate = budget.measuring(evaluator)
    evaluate(None, None)
    found = [0]
    for step in range(1, steps + 1):
        now += 1.0
        if budget(step):
            evaluate(None, None)
            found.append(step)
    return found


def thinned(runs: RunSet, share: float | None) -> RunSet:
    def known_at(run, steps):
        kept = np.isin(run.evaluated, steps)
        return replace(
            run,
            evaluated=run.evaluated[kept],
            metrics={name: values[kept] for name, values in run.metrics.items()},
        )

    return RunSet([known_at(run, chosen_steps(share, len(run))) for run in runs], runs.train, runs.test)


def in_turn(runs: RunSet, share: float) -> RunSet:
    """The runs as ``evaluate_subset=share`` records them."""

    def known_of(run):
        rotation, losses = Rotation(round(share * len(runs.test)), len(runs.test), len(run)), run.loss.copy()
        for number, step in enumerate(run.evaluated.tolist()):
            if (rows := rotation.rows(step, number)) is not None:
                losses[number, np.setdiff1d(np.arange(losses.shape[1]), rows)] = np.nan
        return replace(run, metrics={"loss": losses})

    return RunSet([known_of(run) for run in runs], runs.train, runs.test)


def skill_of_budgets() -> pd.DataFrame:
    runs = RunSet.load(SET)
    return skill(
        [
            (
                {"budget": named(share), "number of evaluations": len(chosen_steps(share, len(runs[0])))},
                thinned(runs, share),
            )
            for share in SHARES
        ],
        runs[20:],
    )


def skill_of_subsets() -> pd.DataFrame:
    runs = RunSet.load(SET)
    return skill([({"share": f"{share:.0%}"}, in_turn(runs, share)) for share in SUBSETS], runs[20:])


def skill(known: list[tuple[dict, RunSet]], test: RunSet) -> pd.DataFrame:
    """known : what a row is called, and the runs as far as they are known."""
    scores = InfluenceScores.load(SET / INITIAL_SCORES)
    true = metrics.final_loss(test.loss)
    rows = []
    for row, runs in known:
        for number in (1, 8):
            simulator = AutoSimulator(scores).fit(runs[:number])
            simulated = simulator.simulate([run.curriculum for run in test], test.initial_loss)
            across = metrics.across_runs_spearman(true, metrics.final_loss(simulated))
            row[f"Spearman over runs, {number} fitted"] = np.nanmean(across)
            row[f"MSE of all steps, {number} fitted"] = metrics.all_steps_mse(test.loss, simulated).mean()
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started = environment()
    table, bare_step = overhead()
    sections = {
        "Overhead against budget": table,
        "Skill against budget": skill_of_budgets(),
        "Skill against the share of test examples at each evaluation": skill_of_subsets(),
    }
    notes = [
        f"Overhead: {STEPS} steps of {1000 * bare_step:.0f} ms, {N_TEST} test sequences, medians of {ROUNDS}"
        " rounds by turns.",
        "Skill: openbookqa-minilm, the 12 last runs predicted; the simulator is AutoSimulator with the scores"
        " before training. Spearman is over runs, of the final loss of each test example, their mean.",
        "Shares: of the 40 test examples, evaluated in turn (`evaluate_subset`), all of them at the first and"
        " the last step.",
    ]
    write("evaluation_budget", sections, notes, started)
