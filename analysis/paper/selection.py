"""Data selection: which 50, or 100, of 200 training examples to train on for the sake of a target group.

    python analysis/paper/selection.py --measure     scores, fits and retrains (about 7 minutes on one core)
    python analysis/paper/selection.py               the tables and the figure, in seconds

The target group are the 40 test examples of runs/facts-minilm, a question about each fact. Half of them are
used to choose, the other half is held out, and then the other way round. A choice are the training
examples that score highest on average over the half that is used:

    gradient_step     inner products of gradients in the optimizer's metric, before training
    ekfac             EK-FAC influence at the end of the first recorded run
    simulator         the default simulator, fitted to the first 20 recorded runs without any scores: how much
                      higher it predicts the final loss if the example is left out of a run, on average over
                      those of the 20 that consume it (its places stay empty, so that steps stay as many)
    bm25, representation     similarity of words, and of what the head sees before training
    random            five draws

MiniLM-L6 is then trained on the choice for 64 steps of four examples, two thirds of a recorded run,
with their optimizer. Cells that are measured already are not measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from protocol import ROOT
from safetensors.numpy import load_file, save_file
from shown import DATA, interval, save_figure, save_tables
from tqdm import tqdm

from simfluence.attribution import attribute
from simfluence.curriculum import Curriculum, remove
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.finetuning.experiment import prepare
from simfluence.finetuning.loop import train
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.runs import RunSet
from simfluence.simulators import AutoSimulator

NAME = "selection"
TASKS, SIZES = ("facts",), (50, 100)
METHODS = ("gradient_step", "ekfac", "simulator", "bm25", "representation")
ORDERS, DRAWS, FITTED = 1, 5, 20
STEPS, BATCH = 64, 4

TEXT = """
MiniLM-L6 has 22.7M parameters, of which the last two layers and the head were trained: a small model. Each
choice was trained on once for each half.

Gain: by how much the mean loss after training on the choice is lower than after training on as many examples
drawn at random (the mean of five draws), per test example, with a 95 % interval of a bootstrap over the 40
test examples; positive is better. *Used*: on the half that was used
to choose; *held out*: on the other half, of whose facts the chosen sentences need say nothing. *Simulator
predicts*: the same gains as predicted from recorded runs alone, before any retraining. *Of used facts*: the
share of the chosen sentences that state a fact of the half that was used, 50 % by chance; a choice of 100
could state all of them and nothing else.
"""


class Cell(NamedTuple):
    """One retraining. half : which half of the test examples chose, 0 or 1; −1 if none did."""

    method: str
    size: int
    half: int
    number: int


def folder(task: str) -> Path:
    return ROOT / "runs" / f"{task}-minilm"


def halves(count: int) -> np.ndarray:
    """The half, 0 or 1, that every test example belongs to, int [test]."""
    half = np.zeros(count, np.int64)
    half[np.random.default_rng(0).permutation(count)[: count // 2]] = 1
    return half


def cells() -> Iterator[Cell]:
    """All retrainings of a task."""
    for number in range(ORDERS):
        yield Cell("all 200", 200, -1, number)
    for size in SIZES:
        for number in range(DRAWS):
            yield Cell("random", size, -1, number)
        for method in METHODS:
            for half in (0, 1):
                for number in range(ORDERS):
                    yield Cell(method, size, half, number)


def choice(cell: Cell, scores: dict[str, np.ndarray]) -> np.ndarray:
    """The rows to train on. scores : method → [train, test]."""
    examples, tests = scores[METHODS[0]].shape
    if cell.method == "all 200":
        return np.arange(examples)
    if cell.method == "random":
        return np.random.default_rng((cell.number, cell.size)).permutation(examples)[: cell.size]
    mean = scores[cell.method][:, halves(tests) == cell.half].mean(1)
    return np.argsort(-mean, kind="stable")[: cell.size]


# ------------------------------------------------------------------------------------------ measure


def measure() -> None:
    """Scores first, then the cells that are not there yet."""
    DATA.mkdir(parents=True, exist_ok=True)
    todo = {task: [cell for cell in cells() if cell not in measured(task)] for task in TASKS}
    print(f"retrainings: { {task: len(some) for task, some in todo.items()} }, 6 s each", file=sys.stderr)
    for task, pending in todo.items():
        runs = RunSet.load(folder(task))
        scores = scores_of(task, runs)
        simulator = AutoSimulator().fit(runs[:FITTED])
        for cell in tqdm(pending, desc=task):
            curriculum = passes(choice(cell, scores), cell.number, len(runs.train))
            loss, right = retrained(runs[0].config, curriculum)
            predicted = simulator.simulate([curriculum], runs.initial_loss[0])[0, -1]
            row = {**cell._asdict(), **named("loss", loss), **named("right", right)}
            frame = pd.DataFrame([row | named("predicted", predicted)])
            file = DATA / f"{NAME}_{task}.csv"
            frame.to_csv(file, mode="a", header=not file.exists(), index=False, float_format="%.5g")


def whole_sizes(task: str) -> list[int]:
    """The sizes of which every cell is measured."""
    there = measured(task)
    return [size for size in SIZES if all(cell in there for cell in cells() if cell.size == size)]


def named(name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{name} {z}": float(value) for z, value in enumerate(values)}


def measured(task: str) -> set[Cell]:
    file = DATA / f"{NAME}_{task}.csv"
    if not file.exists():
        return set()
    return {Cell(*row) for row in pd.read_csv(file)[list(Cell._fields)].itertuples(index=False)}


def scores_of(task: str, runs: RunSet) -> dict[str, np.ndarray]:
    """Method → scores [train, test], computed unless they are there."""
    file = DATA / f"{NAME}_{task}.safetensors"
    if file.exists():
        return load_file(file)
    first = runs[0]
    start = recorded_context(folder(task), first, "initial")
    found = {name: attribute(start, name).scores for name in ("gradient_step", "bm25", "representation")}
    found["ekfac"] = attribute(recorded_context(folder(task), first, [len(first)]), "ekfac").scores
    found["simulator"] = predicted_effects(runs[:FITTED])
    found = {name: np.ascontiguousarray(scores, np.float32) for name, scores in found.items()}
    save_file(found, file)
    return found


def predicted_effects(runs: RunSet) -> np.ndarray:
    """How much the predicted final loss rises without an example, float [train, test]: a mean over the runs
    that consume it."""
    simulator = AutoSimulator().fit(runs)
    print(f"simulator: {simulator.taken_}", file=sys.stderr)
    curricula = runs.curricula
    whole = simulator.simulate(curricula, runs.initial_loss)[:, -1]
    effects = np.zeros((len(runs.train), len(runs.test)))
    for example in tqdm(range(len(effects)), desc="predicted effects"):
        there = [number for number, curriculum in enumerate(curricula) if example in curriculum.used]
        without = [remove(curricula[number], [example], refill=False) for number in there]
        if without:
            ends = simulator.simulate(without, runs.initial_loss[there])[:, -1]
            effects[example] = (ends - whole[there]).mean(0)
    return effects


def passes(rows: np.ndarray, seed: int, examples: int) -> Curriculum:
    """Steps of four: pass after pass over the rows, each in an order of its own."""
    rng = np.random.default_rng(seed)
    needed = STEPS * BATCH
    stream = np.concatenate([rng.permutation(rows) for _ in range(-(-needed // len(rows)))])[:needed]
    return Curriculum.from_batches(stream.reshape(STEPS, BATCH), examples)


def retrained(config: Any, curriculum: Curriculum) -> tuple[np.ndarray, np.ndarray]:
    """The loss of every test example after training, and whether its answer is right, float [test] each."""
    prepared = prepare(config)
    model, task = prepared.model, prepared.task
    model.load_state_dict(prepared.initial)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(parameters, len(curriculum), **config["run"]["optimizer"])
    train(model, task.train, curriculum, optimizer, schedule=schedule)
    model.eval()
    with torch.no_grad():
        found = model.metrics(task.test)
    return found["loss"].numpy(), found["accuracy"].numpy()


# --------------------------------------------------------------------------------------------- show


class Gains(NamedTuple):
    """Of one method and size, against random choices, [test] each: of the loss and the accuracy after
    training, and of the loss that the simulator predicts."""

    loss: np.ndarray
    right: np.ndarray
    predicted: np.ndarray


def gains(frame: pd.DataFrame, method: str, size: int, *, used: bool) -> Gains:
    """frame : the cells of a task. used : whether by the choices that a test example was used for; else by
    those that it was held out of."""
    columns = {
        name: [column for column in frame if column.startswith(f"{name} ")]
        for name in ("loss", "right", "predicted")
    }
    of_size = frame[frame["size"] == size]
    drawn = of_size[of_size["method"] == "random"]
    chance = {name: drawn[of_one].to_numpy().mean(0) for name, of_one in columns.items()}
    chosen = of_size[of_size["method"] == method]
    half = halves(len(columns["loss"]))

    def mean(name: str) -> np.ndarray:
        values = np.array([chosen[chosen["half"] == one][columns[name]].to_numpy().mean(0) for one in (0, 1)])
        return values[half if used else 1 - half, np.arange(len(half))]

    return Gains(
        chance["loss"] - mean("loss"),
        mean("right") - chance["right"],
        chance["predicted"] - mean("predicted"),
    )


def rows(task: str, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The table's rows of a task."""
    scores = load_file(DATA / f"{NAME}_{task}.safetensors")
    runs = RunSet.load(folder(task))
    groups = np.array(runs.train.frame["group"]), np.array(runs.test.frame["group"])
    found = []
    for size in whole_sizes(task):
        for method in METHODS:
            used, held_out = (gains(frame, method, size, used=used) for used in (True, False))
            found.append(
                {
                    "task": task,
                    "chosen": f"{size} of 200",
                    "by": method,
                    "gain, used": interval(used.loss),
                    "gain, held out": interval(held_out.loss),
                    "gain in accuracy, used": interval(used.right),
                    "gain in accuracy, held out": interval(held_out.right),
                    "simulator predicts, used": interval(used.predicted),
                    "simulator predicts, held out": interval(held_out.predicted),
                    "of used facts": stating(scores, method, size, *groups) if task == "facts" else "-",
                }
            )
    return found


def stating(
    scores: dict[str, np.ndarray], method: str, size: int, train_groups: np.ndarray, test_groups: np.ndarray
) -> str:
    """The share of chosen sentences that state a fact of the half that chose."""
    half = halves(len(test_groups))
    shares = [
        np.isin(train_groups[choice(Cell(method, size, one, 0), scores)], test_groups[half == one]).mean()
        for one in (0, 1)
    ]
    return f"{np.mean(shares):.0%}"


def references(task: str, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean test losses of random choices and of all examples."""
    columns = [column for column in frame if column.startswith("loss ")]
    found = []
    for method, size in (*(("random", size) for size in whole_sizes(task)), ("all 200", 200)):
        cell = frame[(frame["method"] == method) & (frame["size"] == size)]
        means = cell[columns].to_numpy().mean(1)
        right = cell[[c for c in frame if c.startswith("right ")]].to_numpy().mean()
        row = {"task": task, "trained on": method if size == 200 else f"{size} at random"}
        row |= {"retrainings": len(cell), "mean test loss": f"{means.mean():.3f}"}
        spread = f"{means.std(ddof=1):.3f}" if len(means) > 1 else "one only"
        found.append(row | {"sd over retrainings": spread, "accuracy": f"{right:.2f}"})
    return found


def draw(frames: dict[str, pd.DataFrame]) -> Figure:
    """A panel a task: gains by method and size, held out and used."""
    figure, panels = plt.subplots(
        1, len(frames), figsize=(7.5 * len(frames), 4.2), layout="constrained", squeeze=False
    )
    for axes, (task, frame) in zip(panels[0], frames.items(), strict=True):
        for number, size in enumerate(whole_sizes(task)):
            for used in (False, True):
                values = [gains(frame, method, size, used=used).loss for method in METHODS]
                means = np.array([interval(one)[:3] for one in values])
                at = np.arange(len(METHODS)) + 0.18 * (2 * number + used - 1.5)
                axes.errorbar(
                    at,
                    means[:, 0],
                    np.abs(means[:, 1:] - means[:, :1]).T,
                    fmt="os"[number],
                    color=f"C{number}",
                    markerfacecolor="white" if used else f"C{number}",
                    label=f"{size} of 200, {'used to choose' if used else 'held out'}",
                )
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xticks(range(len(METHODS)), METHODS, rotation=15)
        axes.set_ylabel("loss lower than after random choices, nats")
        axes.set_title(f"{task}: gain on the target examples (95 % over them)", fontsize=10)
    panels[0, 0].legend(fontsize=8)
    return figure


def show() -> None:
    """Tables and figure of what was measured."""
    frames = {task: pd.read_csv(DATA / f"{NAME}_{task}.csv") for task in TASKS}
    table = pd.DataFrame([row for task, frame in frames.items() for row in rows(task, frame)])
    beside = pd.DataFrame([row for task, frame in frames.items() for row in references(task, frame)])
    save_tables(
        NAME,
        f"python analysis/paper/{NAME}.py --measure",
        TEXT,
        [
            (f"Retrained on the choice, {STEPS} steps of four:", table),
            ("What the choices are compared with:", beside),
        ],
    )
    save_figure(draw(frames), NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="score and retrain first")
    if parser.parse_args().measure:
        measure()
    show()


if __name__ == "__main__":
    main()
