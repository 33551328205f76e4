"""What is recorded, for people: frames and texts about run sets and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from simfluence.errors import RunDataError
from simfluence.runs import storage


def is_run_set(path: Path) -> bool:
    return (path / storage.EXAMPLES).is_file()


def list_sets(path: Path) -> pd.DataFrame:
    """The run sets in a folder: set, runs, complete, train, test (numbers of examples).

    Raises RunDataError if there is none.
    """
    sets = sorted(folder.parent for folder in path.glob(f"*/{storage.EXAMPLES}"))
    if not sets:
        raise RunDataError(f"there is no run set in {path}; record one with `simfluence record`")
    rows = []
    for folder in sets:
        statuses = [storage.status(folder / run_id) for run_id in storage.run_ids(folder)]
        train, test = storage.read_examples(folder)
        rows.append((str(folder), len(statuses), statuses.count("complete"), len(train), len(test)))
    return pd.DataFrame(rows, columns=["set", "runs", "complete", "train", "test"])


def list_runs(path: Path) -> pd.DataFrame:
    """The runs of a set: run, status, steps, mean loss before the first and after the last step."""
    train, test = storage.read_examples(path)
    rows = []
    for run_id in storage.run_ids(path):
        run = storage.read_run(path / run_id, len(train), len(test), verify=False)
        rows.append((run_id, run.status, len(run), np.mean(run.loss[0]), np.mean(run.loss[-1])))
    return pd.DataFrame(rows, columns=["run", "status", "steps", "first mean loss", "last mean loss"])


def describe_run(path: Path, run_id: str) -> str:
    """One run: its status and settings, and how its losses went."""
    train, test = storage.read_examples(path)
    if run_id not in storage.run_ids(path):
        raise RunDataError(f"{path} holds no run {run_id!r}; it holds {', '.join(storage.run_ids(path))}")
    run = storage.read_run(path / run_id, len(train), len(test), verify=False)
    at = np.unique(np.linspace(0, len(run.evaluated) - 1, 9).astype(int))
    curve = pd.DataFrame(
        {
            "step": run.evaluated[at],
            "mean loss": run.loss[at].mean(axis=1),
            "best": run.loss[at].min(axis=1),
            "worst": run.loss[at].max(axis=1),
        }
    )
    used = run.curriculum.used
    lines = [
        f"{run.id}: {run.status}, {len(run)} steps, {len(used)} of {len(train)} training examples used,"
        f" {len(test)} test examples",
        f"optimizer: {_said(run.optimizer)}" if run.optimizer else "optimizer: not recorded",
        "",
        curve.to_markdown(index=False, floatfmt=".4f"),
    ]
    return "\n".join(lines)


def _said(settings: object) -> str:
    if not isinstance(settings, dict):
        return str(settings)
    kept = ("class", "lr", "betas", "momentum", "weight_decay")
    return ", ".join(f"{key} {settings[key]}" for key in kept if key in settings)
