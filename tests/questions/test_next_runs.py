"""The choice of runs against dense closed forms, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import synthetic_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from simfluence import RunSet
from simfluence import curriculum as edits
from simfluence.curriculum_files import read_curricula, write_curricula
from simfluence.edit import Edit
from simfluence.errors import RunDataError
from simfluence.questions.next_runs import chosen_rows, next_runs
from simfluence.runs import ExampleTable


def variance(recorded: np.ndarray, asked: np.ndarray, penalty: float) -> float:
    """Σ d'(X'X/λ + I)⁻¹d: posterior variances in units of τ², from the dense covariance of all effects."""
    covariance = np.linalg.inv(recorded.T @ recorded / penalty + np.eye(recorded.shape[1]))
    return float(np.einsum("qi,ij,qj", asked, covariance, asked))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 20))
def test_the_choice_is_that_of_the_dense_closed_form(seed: int, penalty: float) -> None:
    rng = np.random.default_rng(seed)
    recorded, candidates, asked = (rng.normal(size=(n, 7)) for n in (3, 9, 2))
    chosen, left = chosen_rows(recorded, candidates, asked, penalty, 4)
    before, rows = variance(recorded, asked, penalty), recorded
    for number, remaining in zip(chosen, left, strict=True):
        others = [at for at in range(9) if at not in chosen[: chosen.index(number)]]
        after = {at: variance(np.vstack([rows, candidates[at]]), asked, penalty) for at in others}
        assert after[number] == pytest.approx(min(after.values()), rel=1e-9)
        assert remaining == pytest.approx(after[number] / before, rel=1e-6)
        rows = np.vstack([rows, candidates[number]])


@pytest.fixture
def grouped() -> RunSet:
    runs = synthetic_runs(n_runs=8)[0]
    return RunSet(runs.runs, ExampleTable(runs.train.frame.assign(group=list("aaabbbcccddd"))), runs.test)


def test_a_candidate_that_asks_the_question_itself_is_chosen(grouped: RunSet) -> None:
    run, edit = grouped[-1], Edit("remove", groups="a")
    without = edit.apply(run, grouped.train)
    others = [edits.shuffle(run.curriculum, np.random.default_rng(seed)) for seed in range(5)]
    found = next_runs(grouped, edit, candidates=[*others, without], count=2)
    assert next(iter(found.curricula.values())) == without
    assert found.table["variance"].is_monotonic_decreasing
    assert list(found.table["run"]) == list(found.curricula)


def test_more_runs_always_help_and_the_draw_is_seeded(grouped: RunSet) -> None:
    for question in (None, Edit("remove", ids=3)):
        found = next_runs(grouped, question, candidates=30, count=5)
        left = found.table["variance"].to_numpy()
        assert left[0] < 1
        assert (np.diff(left) < 0).all()
        again = next_runs(grouped, question, candidates=30, count=5)
        assert list(again.curricula) == list(found.curricula)
        assert list(next_runs(grouped, question, candidates=30, count=5, seed=1).curricula) != list(
            found.curricula
        )


def test_what_cannot_be_asked_is_said(grouped: RunSet) -> None:
    for options, message in (
        ({"count": 0}, "count must be 1"),
        ({"candidates": 3, "count": 4}, r"count must be 1 … 3"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"question": Edit("shuffle")}, "changes only the order"),
    ):
        with pytest.raises(ValueError, match=message):
            next_runs(grouped, **options)
    with pytest.raises(ValueError, match="at least 2 recorded runs"):
        next_runs(grouped[:1])


def test_files_of_curricula(tmp_path: Path, grouped: RunSet) -> None:
    found = next_runs(grouped, candidates=9, count=2).curricula
    write_curricula(tmp_path / "c.json", found, grouped.train)
    assert read_curricula(tmp_path / "c.json", grouped.train) == found
    for text, message in (
        ("[", "is no JSON"),
        ("{}", "must map names of runs"),
        ('{"a": "b"}', "a must be a list of steps"),
        ('{"a": [["99"]]}', "a: example id '99' is not in the table"),
        ('{"a": [["1"], []]}', "a: every step needs at least one example"),
        ('{"a": []}', "a has no step"),
    ):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(RunDataError, match=message):
            read_curricula(tmp_path / "c.json", grouped.train)
    with pytest.raises(RunDataError, match="cannot be read"):
        read_curricula(tmp_path / "none.json", grouped.train)


RECORDED = Path("runs/openbookqa-minilm").resolve()


def test_the_command_writes_curricula(simfluence, tmp_path: Path) -> None:
    (tmp_path / "edits.yaml").write_text("x: {name: remove, groups: [which]}\ny: {name: shuffle}\n")
    options = (f"path={RECORDED}", "file=edits.yaml")
    done = simfluence("next_runs", *options, "only=x", "count=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "leave out all training examples of which" in done.stdout
    runs = RunSet.load(RECORDED)
    expected = next_runs(runs, Edit("remove", groups="which"), count=3).curricula
    assert read_curricula(tmp_path / "next_runs.json", runs.train) == expected
    assert all(len(one) == 96 for one in expected.values())
    assert len(json.loads((tmp_path / "next_runs.json").read_text())) == 3
    for option, message in (
        ("count=3", "has 2 edits: choose one, only='x'"),
        ("only=z", "has no edit 'z'; it has x, y"),
        ("only=y", "changes only the order"),
        ("output=next.txt", "must end in one of .json"),
    ):
        refused = simfluence("next_runs", *options, option, cwd=tmp_path)
        assert refused.returncode == 2
        assert message in refused.stderr
