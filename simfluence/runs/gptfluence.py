"""The run-log format of GPTfluence's public data (Chai et al. 2024): one folder a run, holding

    train_samples_id.json     a JSON object a line: {"step": 1, "samples_id": [5, 85, 190, 40]}
    all_loss_trajectory.out   a JSON object a line: {"id": 7, "loss_trajectory": [{"step": 1, "loss": 2.3}]}

Steps count from 1, and a loss "at step s" is that after the batch of step s. The published logs have no
losses before the first step. As in the published protocol, a run therefore begins at the first step after
which every test example has a loss, and the batches up to it are left out (how many is in the run's
``config``), unless ``initial_loss`` is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from simfluence.curriculum import check_counted
from simfluence.errors import RunDataError
from simfluence.jsonl import read_jsonl
from simfluence.runs.importing import Log, Read
from simfluence.runs.run import Run
from simfluence.runs.storage import natural_order
from simfluence.runs.tables import ExampleTable, as_text

SAMPLES, LOSSES = "train_samples_id.json", "all_loss_trajectory.out"


def read(path: str | Path, *, train: ExampleTable | None = None, test: ExampleTable | None = None) -> Read:
    """The runs in a folder of run folders (or a single run's folder).

    Run names are the folders'; losses are float64. ``train`` and ``test`` are the tables of examples; by
    default of all ids that occur in any of the runs, ascending.

    Raises RunDataError for a file that does not have the form above (file and line are named).
    """
    path = Path(path)
    folders = sorted({file.parent for pattern in (SAMPLES, f"*/{SAMPLES}") for file in path.glob(pattern)})
    if not folders:
        raise RunDataError(f"{path} holds no GPTfluence runs: no folder in it has a file {SAMPLES}")
    folders.sort(key=lambda folder: natural_order(folder.name))
    read = [(folder, _read_batches(folder / SAMPLES), _read_losses(folder / LOSSES)) for folder in folders]
    train = train or _table({i for _, batches, _ in read for batch in batches.values() for i in batch})
    test = test or _table({z for _, _, losses in read for z in losses})
    return [_log(*one, test) for one in read], train, test


def write(runs: Iterable[Run], train: ExampleTable, test: ExampleTable, path: str | Path) -> None:
    """Write runs in this format, ids as they are; losses before the first step become those at step 0.

    Raises ValueError for curricula of shares, for which the format has no room.
    """
    runs = list(runs)
    check_counted([run.curriculum for run in runs], "GPTfluence's format")
    for run in runs:
        folder = Path(path) / run.id
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / SAMPLES).open("w", encoding="utf-8") as file:
            for step, batch in enumerate(run.curriculum, start=1):
                line = {"step": step, "samples_id": [_as_number(train.ids[i]) for i in batch]}
                file.write(json.dumps(line) + "\n")
        with (folder / LOSSES).open("w", encoding="utf-8") as file:
            for z, test_id in enumerate(test.ids):
                series = [
                    {"step": int(step), "loss": float(loss)}
                    for step, loss in zip(run.evaluated, run.loss[:, z], strict=True)
                ]
                file.write(json.dumps({"id": _as_number(test_id), "loss_trajectory": series}) + "\n")


def _log(
    folder: Path, batches: dict[int, list[str]], losses: dict[str, dict[int, float]], test: ExampleTable
) -> Log:
    """A run up to the last step after which every test example has a loss."""
    if missing := [z for z in test.ids if z not in losses]:
        raise RunDataError(f"{folder / LOSSES} has no losses of test example {missing[0]!r}")
    common = set.intersection(*(set(losses[z]) for z in test.ids))
    at = sorted(step for step in common if min(batches) - 1 <= step <= max(batches))
    if not at:
        raise RunDataError(f"{folder}: there is no step after which every test example has a loss")
    return Log(
        name=folder.name,
        batches={step: batch for step, batch in batches.items() if step <= at[-1]},
        evaluated=np.array(at),
        metrics={"loss": np.array([[losses[z][step] for z in test.ids] for step in at])},
        config={"source": "GPTfluence run log"},
    )


def _read_batches(file: Path) -> dict[int, list[str]]:
    batches: dict[int, list[str]] = {}
    for where, line in read_jsonl(file):
        with _explained(where, '{"step", "samples_id": [...]}'):
            step = int(line["step"])
            if step in batches:
                raise ValueError(f"step {step} occurs twice")
            batches[step] = [as_text(i) for i in line["samples_id"]]
    if not batches:
        raise RunDataError(f"{file} is empty")
    return batches


def _read_losses(file: Path) -> dict[str, dict[int, float]]:
    losses: dict[str, dict[int, float]] = {}
    for where, line in read_jsonl(file):
        with _explained(where, '{"id", "loss_trajectory": [{"step", "loss"}, ...]}'):
            series = {int(point["step"]): float(point["loss"]) for point in line["loss_trajectory"]}
            test_id = as_text(line["id"])
            if test_id in losses or len(series) < len(line["loss_trajectory"]):
                raise ValueError(f"test example {test_id} has two losses at one step")
            losses[test_id] = series
    return losses


@contextmanager
def _explained(where: str, expected: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise RunDataError(f"{where}: expected {expected}; got {type(error).__name__}: {error}") from error


def _table(ids: set[str]) -> ExampleTable:
    return ExampleTable(pd.DataFrame({"id": sorted(ids, key=natural_order)}))


def _as_number(text: str) -> int | str:
    return int(text) if text.isdecimal() and str(int(text)) == text else text
