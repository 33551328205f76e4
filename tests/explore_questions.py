"""What the page's answers are compared with: the same edits, asked in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simfluence import RunSet, what_if
from simfluence.answer import WhatIf
from simfluence.edit import Edit
from simfluence.fitted import Fitted

TOLERANCE = 1e-6
"""Of losses and changes, relative to the largest loss."""


def asked(
    fitted: Fitted, runs: RunSet, edits: Sequence[dict[str, Any]], schedule: str, widened: float = 1.0
) -> WhatIf:
    """The answer of Python to edits that are applied one after the other."""

    def edited(curriculum: Any) -> Any:
        for edit in edits:
            curriculum = Edit(**edit).apply(curriculum, runs.train)
        return curriculum

    known = {"train": runs.train, "test": runs.test, "schedule": schedule, "widened": widened}
    return what_if(fitted, runs[-1], edited, **known)


def largest_difference(found: dict[str, Any], answer: WhatIf) -> float:
    """Between the page's numbers and Python's, relative to the largest loss. Verdicts, reasons and notes must
    be the same.
    """
    columns = ["original", "edited", "change", *(["low", "high"] if answer.level is not None else [])]
    apart = [np.abs(np.array(found[name]) - answer.changes[name]).max() for name in columns]
    points = len(answer.edited) + 1
    curves = np.array(found["losses"]).reshape(points, -1)
    apart.append(np.abs(curves - answer.after[:points]).max())
    assert found["notes"] == answer.notes
    if answer.level is not None:
        assert found["verdict"] == answer.changes["verdict"].tolist()
        assert found["reasons"] == list(answer.trust.reasons)
        assert answer.means is not None
        for name in ("low", "high"):
            apart.append(abs(found["all"][name] - answer.means.loc["all", name]))
        assert found["all"]["verdict"] == answer.trust.verdict
    return float(max(apart) / np.abs(answer.changes["original"]).max())


ASK = """
const answer = wholeAnswer(page, edits, schedule);
const everyone = page.test.ids.map((_, z) => z);
return {
  original: [...answer.original], edited: [...answer.final], change: [...answer.change],
  losses: [...answer.losses], notes: answer.notes, reasons: answer.about?.reasons,
  low: answer.bands?.map((band) => band.low), high: answer.bands?.map((band) => band.high),
  verdict: answer.bands?.map((band) => band.verdict),
  all: meanChange(page, answer.change, everyone, answer.about),
};
"""
"""JavaScript that asks the page about ``edits`` under a ``schedule``."""
