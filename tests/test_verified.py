"""Retrained answers are kept, and later bands learn from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from families import known_runs

from simfluence import AutoSimulator, PredictiveBands, RunSet, what_if
from simfluence.answer import WhatIf
from simfluence.errors import RunDataError
from simfluence.fitted import Fitted
from simfluence.verified import FILE, PRIOR, keep, load, said


@pytest.fixture(scope="module")
def answers() -> tuple[RunSet, list[WhatIf]]:
    """Four answers with their truths: other recorded runs as edits of one."""
    runs, _ = known_runs(np.random.default_rng(3), runs=16, steps=40, n=24, tests=8, noise=0.01)
    bands = PredictiveBands(AutoSimulator()).fit(runs[:10])
    fitted = Fitted(bands.simulator_, bands)
    found = []
    for other in runs[11:15]:
        answer = what_if(fitted, runs[10], other.curriculum)
        true = other.loss[-1] - runs[10].loss[-1]
        found.append(replace(answer, changes=answer.changes.assign(true_change=true)))
    return runs, found


def wrong_by(answer: WhatIf, times: float) -> WhatIf:
    """The answer with truths so many bands away from it."""
    changes = answer.changes
    return replace(
        answer,
        changes=changes.assign(true_change=changes["change"] + times * (changes["high"] - changes["change"])),
    )


def test_nothing_verified_changes_nothing(tmp_path: Path) -> None:
    assert (said(tmp_path, 0.9, "auto").answers, said(tmp_path, 0.9, "auto").widened) == (0, 1.0)


def test_bands_widen_by_how_far_truths_are_out(answers, tmp_path: Path) -> None:
    _, found = answers
    for number, answer in enumerate(found, start=1):
        keep(tmp_path, "run-010", f"edit {number}", "auto", wrong_by(answer, 3.0))
        assert said(tmp_path, 0.9, "auto").answers == number
        assert said(tmp_path, 0.9, "auto").widened == pytest.approx(3 ** (number / (number + PRIOR)))
    for number, answer in enumerate(found, start=1):  # replaced, not added
        keep(tmp_path, "run-010", f"edit {number}", "auto", wrong_by(answer, 1.0))
    assert said(tmp_path, 0.9, "auto").answers == 4
    assert said(tmp_path, 0.9, "auto").widened == pytest.approx(1)


def test_a_widened_answer_teaches_what_an_unwidened_one_does(answers, tmp_path: Path) -> None:
    runs, found = answers
    bands = PredictiveBands(AutoSimulator()).fit(runs[:10])
    wide = what_if(Fitted(bands.simulator_, bands), runs[10], runs[11].curriculum, widened=2.5)
    narrow = found[0].changes
    np.testing.assert_allclose(
        wide.changes["high"] - wide.changes["change"], 2.5 * (narrow["high"] - narrow["change"])
    )
    assert "bands 2.50 times as wide, after answers that were retrained" in str(wide.trust)
    wide = replace(wide, changes=wide.changes.assign(true_change=narrow["true_change"]))
    for name, answer in (("narrow", found[0]), ("wide", wide)):
        (tmp_path / name).mkdir()
        keep(tmp_path / name, "run-010", "edit", "auto", answer)
    assert said(tmp_path / "wide", 0.9, "auto").widened == pytest.approx(
        said(tmp_path / "narrow", 0.9, "auto").widened
    )


def test_a_run_set_with_verified_answers_is_read_as_before(answers, tmp_path: Path) -> None:
    runs, found = answers
    runs.save(tmp_path / "set")
    keep(tmp_path / "set", "run-010", "edit", "auto", found[0])
    assert len(RunSet.load(tmp_path / "set")) == len(runs)
    np.testing.assert_allclose(load(tmp_path / "set")["true_change"], found[0].changes["true_change"])


def test_bad_answers_and_files_are_named(answers, tmp_path: Path) -> None:
    _, found = answers
    for column in ("true_change", "low"):
        with pytest.raises(ValueError, match="retrained and have bands"):
            keep(
                tmp_path,
                "run-010",
                "edit",
                "auto",
                replace(found[0], changes=found[0].changes.drop(columns=column)),
            )
    (tmp_path / FILE).write_bytes(b"no table")
    with pytest.raises(RunDataError, match="does not hold verified answers"):
        said(tmp_path, 0.9, "auto")


def test_answers_count_for_bands_of_their_own_level_and_simulator(answers, tmp_path: Path) -> None:
    _, found = answers
    keep(tmp_path, "run-010", "edit", "auto", wrong_by(found[0], 3.0))
    keep(tmp_path, "run-010", "edit", "linear", wrong_by(found[0], 9.0))
    keep(tmp_path, "run-010", "edit", "auto", replace(wrong_by(found[0], 27.0), level=0.5))
    for level, simulator, times in ((0.9, "auto", 3), (0.9, "linear", 9), (0.5, "auto", 27)):
        known = said(tmp_path, level, simulator)
        assert known.answers == 1
        assert known.widened == pytest.approx(times ** (1 / (1 + PRIOR)))
    assert said(tmp_path, 0.9, "dynamics").answers == 0
