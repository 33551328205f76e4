"""Fitted simulators beside the run set that they were fitted to: fitted once, read afterwards.

A file in <set>/fitted/ is named by what the fit depends on: the runs and in what part they are used, the
simulator with all its options and scores, the level of the bands, and the code of this version of simfluence.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from simfluence.code_fingerprint import code_fingerprint
from simfluence.errors import RunDataError
from simfluence.fitted import Fitted, fit
from simfluence.runs import Run, RunSet
from simfluence.runs.example import is_read_only
from simfluence.simulators import Simulator
from simfluence.simulators import state as states

FOLDER = "fitted"
KEPT = 8
"""So many files are kept beside a set; the one that was used longest ago makes room."""


def fit_once(
    folder: str | Path,
    runs: RunSet,
    simulator: Simulator,
    *,
    train: int = 20,
    validation: int = 2,
    level: float | None = 0.9,
    held_out: str | None = None,
) -> tuple[Fitted, str]:
    """What :func:`simfluence.fit` gives, read from beside the set if the same fit was made before; and where
    it comes from, in a sentence ("" where it was fitted and could not be kept).

    folder : of the run set ``runs``. The other arguments are those of :func:`simfluence.fit`.
    """
    options = {"train": train, "validation": validation, "level": level, "held_out": held_out}
    parts = runs.split_to_fit(train, validation, held_out=held_out)
    seen = [[_of_run(run) for run in part] for part in parts[:2]]
    tables = [table.fingerprint for table in (runs.train, runs.test)]
    file = _place(folder) / f"{_key(simulator, [[tables], *seen], level)}.safetensors"
    if file.exists():
        try:
            found = Fitted.load(file)
            file.touch()  # used now
            notes = tuple(parts[2])
            return Fitted(found.simulator, found.bands, found.runs, notes), f"fitted before: {file}"
        except RunDataError:  # damaged: fitted again, and written over
            pass
    fitted = fit(runs, simulator, **options)  # type: ignore[arg-type]
    try:
        file.parent.mkdir(parents=is_read_only(folder), exist_ok=True)
        fitted.save(file)
        for old in sorted(file.parent.glob("*.safetensors"), key=lambda one: -one.stat().st_mtime)[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:  # a folder that cannot be written, or a full disk: the answer does not need the file
        return fitted, ""
    return fitted, f"kept for the next time: {file}"


def _place(folder: str | Path) -> Path:
    """Beside the set; of the set that is installed with the package, in the user's cache."""
    if is_read_only(folder):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simfluence" / FOLDER
    return Path(folder) / FOLDER


def _of_run(run: Run) -> list[str]:
    """What a fit reads of a run: curriculum, losses, learning rates, optimizer, weights at the start."""
    rates = np.ascontiguousarray(run.learning_rate, "<f8").tobytes()
    return [
        run.fingerprint,
        hashlib.sha256(rates).hexdigest(),
        json.dumps(run.optimizer, sort_keys=True, default=str),
        str(run.initial_weights),
    ]


def _key(simulator: Simulator, seen: list[list[list[str]]], level: float | None) -> str:
    """What a fit depends on, as one name."""
    arrays = states.Arrays()
    params = states.encode({"name": simulator.name, "params": simulator._portable_params()}, arrays)
    said = {"runs": seen, "simulator": params, "level": level, "code": code_fingerprint()}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, array in arrays.by_name.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]
