"""Answers that were retrained, kept beside a run set, and what they say of the bands of later answers.

Bands rest on constants that were chosen on other trainings (:mod:`simfluence.trust`). Every verified answer
tells how they do on this one. With the ratios ρ of |true change − predicted change| to the distance of the
band's edge on that side, bands would have held a share ``level`` of the true changes had they been as many
times as wide as the ``level`` quantile q of ρ. After n answers they are made wider by the factor

    exp(n log q / (n + PRIOR))

since few answers, whose test examples are alike, say little.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.answer import WhatIf
from simfluence.errors import RunDataError
from simfluence.runs import storage

FILE = "verified.parquet"
PRIOR = 4.0
"""How many answers the constants count as."""
ABOUT = ["answer", "run_id", "edit", "simulator", "schedule", "level"]
COLUMNS = [*ABOUT, "id", "change", "low", "high", "true_change"]
"""``low`` and ``high`` are the band's edges as if it had not been widened."""


@dataclass(frozen=True)
class Verified:
    """What retrained answers say of bands. answers : how many there are. widened : how many times as wide as
    otherwise bands are to be.
    """

    answers: int = 0
    widened: float = 1.0


def keep(path: str | Path, run_id: str, edit: str, simulator: str, answer: WhatIf) -> None:
    """Add a retrained answer with bands to the run set at ``path``; one of the same question, simulator and
    level that is there already is replaced. simulator : its name.

    Raises ValueError for an answer without retraining or without bands.
    """
    changes, fingerprint = answer.changes, answer.edited.fingerprint[:12]
    if "true_change" not in changes or "low" not in changes:
        raise ValueError("only answers that were retrained and have bands can be kept")
    centre = changes["change"]
    rows = pd.DataFrame(
        {
            "answer": f"{run_id}: {edit}, {fingerprint}, {simulator}, level {answer.level}",
            "run_id": run_id,
            "edit": edit,
            "simulator": simulator,
            "schedule": answer.schedule,
            "level": float(answer.level or np.nan),
            "id": changes["id"].map(str),
            "change": centre,
            "low": centre - (centre - changes["low"]) / answer.widened,
            "high": centre + (changes["high"] - centre) / answer.widened,
            "true_change": changes["true_change"],
        }
    )
    with filelock.FileLock(Path(path) / storage.LOCK):
        before = load(path)
        before = before[before["answer"] != rows["answer"].iloc[0]]
        whole = pd.concat([before, rows], ignore_index=True) if len(before) else rows
        storage.write_atomically(Path(path) / FILE, whole.to_parquet(index=False))


def load(path: str | Path) -> pd.DataFrame:
    """One row a test example of every answer kept with a run set; empty where there are none.

    Raises RunDataError for a file that is not such a table.
    """
    file = Path(path) / FILE
    if not file.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        return pd.read_parquet(file, columns=COLUMNS)
    except (OSError, ValueError, KeyError) as error:
        raise RunDataError(f"{file} does not hold verified answers: {error}; delete or repair it") from error


def said(path: str | Path, level: float, simulator: str) -> Verified:
    """What the answers kept with a run set say of this simulator's bands of this level."""
    rows = load(path)
    rows = rows[(rows["simulator"] == simulator) & np.isclose(rows["level"].astype(np.float64), level)]
    if rows.empty:
        return Verified()
    missed = rows["true_change"] - rows["change"]
    edge = np.where(missed >= 0, rows["high"] - rows["change"], rows["change"] - rows["low"])
    ratios: npt.NDArray[np.float64] = (missed.abs() / np.maximum(edge, 1e-300)).to_numpy()
    answers = rows["answer"].nunique()
    quantile = max(float(np.quantile(ratios[np.isfinite(ratios)], level)), 1e-3)
    return Verified(answers, float(np.exp(answers * np.log(quantile) / (answers + PRIOR))))
