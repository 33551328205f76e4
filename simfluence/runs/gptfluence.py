"""The run-log format of GPTfluence's public data (Chai et al. 2024): one folder a run, holding

    train_samples_id.json     a JSON object a line: {"step": 1, "samples_id": [5, 85, 190, 40]}
    all_loss_trajectory.out   a JSON object a line: {"id": 7, "loss_trajectory": [{"step": 1, "loss": 2.3}]}

Its steps count from 1; a loss "at step s" is that after the batch of step s. There is none before the
first step: the first one that all test examples have takes the place of the initial losses, and the
batches up to it are left out (how many is in the run's ``config``), as in the published protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs.run import Run
from simfluence.runs.storage import natural_order
from simfluence.runs.tables import ExampleTable

SAMPLES, LOSSES = "train_samples_id.json", "all_loss_trajectory.out"


def read(
    path: str | Path, *, train: ExampleTable | None = None, test: ExampleTable | None = None
) -> tuple[list[Run], ExampleTable, ExampleTable]:
    """The runs in a folder of run folders (or a single run's folder), their training and their test table.

    ``train`` and ``test`` are the tables of examples, by default all ids that occur in any of the runs,
    ascending. Run names are the folders'; losses are float64.

    Raises RunDataError, naming file and line, for what does not have the form above.
    """
    path = Path(path)
    folders = sorted({file.parent for pattern in (SAMPLES, f"*/{SAMPLES}") for file in path.glob(pattern)})
    if not folders:
        raise RunDataError(f"{path} holds no GPTfluence runs: no folder in it has a file {SAMPLES}")
    folders.sort(key=lambda folder: natural_order(folder.name))
    logs = [(folder, _read_batches(folder / SAMPLES), _read_losses(folder / LOSSES)) for folder in folders]
    train = train or _table({i for _, batches, _ in logs for batch in batches.values() for i in batch})
    test = test or _table({z for _, _, losses in logs for z in losses})
    return [_run(*log, train, test) for log in logs], train, test


def write(runs: Iterable[Run], train: ExampleTable, test: ExampleTable, path: str | Path) -> None:
    """Write runs in this format, ids as they are; losses before the first step become those at step 0."""
    for run in runs:
        folder = Path(path) / run.id
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / SAMPLES).open("w") as file:
            for step, batch in enumerate(run.curriculum, start=1):
                line = {"step": step, "samples_id": [_as_number(train.ids[i]) for i in batch]}
                file.write(json.dumps(line) + "\n")
        with (folder / LOSSES).open("w") as file:
            for z, test_id in enumerate(test.ids):
                series = [
                    {"step": int(step), "loss": float(loss)}
                    for step, loss in zip(run.evaluated, run.loss[:, z], strict=True)
                ]
                file.write(json.dumps({"id": _as_number(test_id), "loss_trajectory": series}) + "\n")


def _run(
    folder: Path,
    batches: dict[int, list[str]],
    losses: dict[str, dict[int, float]],
    train: ExampleTable,
    test: ExampleTable,
) -> Run:
    if missing := [z for z in test.ids if z not in losses]:
        raise RunDataError(f"{folder / LOSSES} has no losses of test example {missing[0]!r}")
    steps = sorted(batches)
    if steps != list(range(steps[0], steps[0] + len(steps))):
        raise RunDataError(f"{folder / SAMPLES}: expected steps one after the other, got {steps[:10]} …")
    common = set.intersection(*(set(losses[z]) for z in test.ids))
    at = sorted(step for step in common if steps[0] - 1 <= step <= steps[-1])
    if not at:
        raise RunDataError(f"{folder}: there is no step after which every test example has a loss")
    kept = [step for step in steps if at[0] < step <= at[-1]]
    return Run(
        id=folder.name,
        curriculum=Curriculum.from_batches([train.rows(batches[step]) for step in kept], len(train)),
        metrics={"loss": np.array([[losses[z][step] for z in test.ids] for step in at])},
        evaluated=np.array(at) - at[0],
        learning_rate=np.full(len(kept), np.nan),
        train_loss=np.full(len(kept), np.nan),
        config={"source": "GPTfluence run log", "steps_left_out": sum(step <= at[0] for step in steps)},
    )


def _read_batches(file: Path) -> dict[int, list[str]]:
    batches: dict[int, list[str]] = {}
    for where, line in _lines(file):
        with _explained(where, '{"step", "samples_id": [...]}'):
            step = int(line["step"])
            if step in batches:
                raise ValueError(f"step {step} occurs twice")
            batches[step] = [str(i) for i in line["samples_id"]]
    if not batches:
        raise RunDataError(f"{file} is empty")
    return batches


def _read_losses(file: Path) -> dict[str, dict[int, float]]:
    losses: dict[str, dict[int, float]] = {}
    for where, line in _lines(file):
        with _explained(where, '{"id", "loss_trajectory": [{"step", "loss"}, ...]}'):
            series = {int(point["step"]): float(point["loss"]) for point in line["loss_trajectory"]}
            if str(line["id"]) in losses or len(series) < len(line["loss_trajectory"]):
                raise ValueError(f"test example {line['id']} has two losses at one step")
            losses[str(line["id"])] = series
    return losses


def _lines(file: Path) -> list[tuple[str, Any]]:
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunDataError(f"{file} cannot be read: {error}") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        if text.strip():
            with _explained(where := f"{file}, line {number}", "a JSON object a line"):
                lines.append((where, json.loads(text)))
    return lines


@contextmanager
def _explained(where: str, expected: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise RunDataError(f"{where}: expected {expected}; got {type(error).__name__}: {error}") from error


def _table(ids: set[str]) -> ExampleTable:
    return ExampleTable(pd.DataFrame({"id": sorted(ids, key=natural_order)}))


def _as_number(text: str) -> int | str:
    return int(text) if text.isdigit() and str(int(text)) == text else text
