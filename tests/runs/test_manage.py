"""Listing, showing, verifying and pruning of what lies on the disk."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from simfluence.errors import RunDataError
from simfluence.recording import RunRecorder
from simfluence.runs import RunSet, list_runs, prune, show, verify

EXAMPLES = [{"id": f"e{i}"} for i in range(6)]


def loss(model, batch):
    return model(torch.ones(len(batch), 1))[:, 0]


def record(recorder, run_id, steps=5, stop_after=None, error=KeyboardInterrupt, **options):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder.run(run_id, model=model, loss=loss, optimizer=optimizer, **options) as run:
        for step in range(run.start, steps):
            if step == stop_after:
                raise error("stopped")
            optimizer.zero_grad()
            loss(model, EXAMPLES[:1]).mean().backward()
            optimizer.step()
            run.step([f"e{step}"])


@pytest.fixture
def runs(tmp_path):
    """A complete run with checkpoints, one that needed two attempts, an interrupted and a failed one."""
    recorder = RunRecorder(tmp_path / "runs" / "a-set", EXAMPLES, EXAMPLES[:3])
    record(recorder, "run-10", keep_weights="every")
    for number in range(3):
        if number < 2:
            with pytest.raises(KeyboardInterrupt):
                record(recorder, "run-9", stop_after=number + 1, restart=bool(number))
        else:
            record(recorder, "run-9", restart=True)
    with pytest.raises(KeyboardInterrupt):
        record(recorder, "interrupted", stop_after=4, resume_every=3)
    with pytest.raises(ZeroDivisionError):
        record(recorder, "failed", stop_after=1, error=ZeroDivisionError)
    return recorder.path


def test_listing(runs):
    frame = list_runs(runs)
    assert frame["run"].tolist() == ["failed", "interrupted", "run-9", "run-10"]
    assert frame["status"].tolist() == ["failed", "interrupted", "complete", "complete"]
    assert frame["steps"].tolist() == [1, 4, 5, 5]
    assert (frame["steps_per_second"] > 0).all()
    loaded = RunSet.load(runs, incomplete=True)
    np.testing.assert_allclose(frame["loss"], [run.loss[-1].mean() for run in loaded])
    folder = runs / "run-10"
    assert frame["bytes"][3] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert list_runs(runs.parent).equals(frame)
    assert set(frame["set"]) == {"a-set"}
    (runs / "run-9" / "steps.parquet").write_bytes(b"torn")
    (runs / "run-10" / "run.json").unlink()
    frame = list_runs(runs)
    assert frame["status"].tolist()[2:] == ["damaged", "damaged"]
    assert frame["steps"].isna().tolist() == [False, False, True, True]
    with pytest.raises(RunDataError, match="no run set and holds none"):
        list_runs(runs / "run-9")


def test_showing(runs):
    summary = show(runs, "interrupted")
    assert (summary.status, summary.interrupted_after, summary.resumable_after) == ("interrupted", 4, 3)
    assert summary.mean_loss.tolist() == pytest.approx(summary.run.loss.mean(axis=1).tolist())
    assert "stopped after step 4; can be resumed after step 3" in str(summary)
    assert "cannot be resumed" in str(show(runs, "failed"))
    assert "ZeroDivisionError: stopped" in str(show(runs, "failed"))
    assert "complete, 5 steps" in str(show(runs, "run-9"))
    with pytest.raises(RunDataError, match="there are failed, interrupted, run-9, run-10"):
        show(runs, "other")
    with pytest.raises(ValueError, match="name"):
        show(runs, "../a-set")


def test_verifying(runs):
    assert verify(runs.parent).empty
    weights = runs / "run-10" / "checkpoints" / "step-000002.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (runs / "run-10" / "checkpoints" / "step-000001.safetensors").unlink()
    shutil.copyfile(weights, weights.with_name("step-000099.safetensors"))
    with (runs / "run-9" / "steps.parquet").open("ab") as file:
        file.write(b"x")
    journal = bytearray((runs / "interrupted" / "journal.arrow").read_bytes())
    journal[len(journal) // 2] ^= 1
    (runs / "interrupted" / "journal.arrow").write_bytes(journal)
    (runs / "failed" / "run.json").write_text("{")
    problems = verify(runs)
    assert problems[["run", "file"]].values.tolist() == [
        ["failed", "run.json"],
        ["interrupted", "journal.arrow"],
        ["run-9", "steps.parquet"],
        ["run-10", "checkpoints/step-000001.safetensors"],
        ["run-10", "checkpoints/step-000002.safetensors"],
        ["run-10", "checkpoints/step-000099.safetensors"],
    ]
    for problem, said in zip(
        problems["problem"],
        ["damaged", "damaged", "torn", "missing", "edited", "not in the manifest"],
        strict=True,
    ):
        assert said in problem
    (runs / "examples.parquet").write_bytes(b"")
    assert verify(runs)["file"].tolist() == ["examples.parquet"]


def test_a_manifest_that_points_elsewhere(runs):
    manifest = runs / "run-9" / "run.json"
    manifest.write_text(manifest.read_text().replace('"steps.parquet"', '"../run-10/steps.parquet"'))
    assert "not in the run's folder" in verify(runs)["problem"][0]
    with pytest.raises(RunDataError, match="not in the run's folder"):
        RunSet.load(runs)


def test_pruning(runs):
    def everything():
        return sorted(file for file in runs.rglob("*") if file.name != ".lock")

    before = everything()
    (runs / "run-9" / "steps.parquet.tmp").write_bytes(b"123")
    planned = prune(runs, failed=True, weights=True)
    assert planned[["run", "what"]].values.tolist() == [
        ["failed", "failed run"],
        ["interrupted", "interrupted run"],
        ["run-9", "earlier attempt"],
        ["run-9", "earlier attempt"],
        ["run-9", "unfinished write"],
        ["run-10", "weights"],
    ]
    assert (planned["bytes"] > 0).all()
    prune(runs, dry_run=False)  # by default: earlier attempts only
    assert not list((runs / "run-9").glob("attempt-*"))
    assert set(before) - set(everything()) == {p for p in before if "attempt-" in str(p)}
    prune(runs, failed=True, weights=True, dry_run=False)
    assert RunSet.load(runs).ids == ["run-9", "run-10"]
    assert verify(runs).empty
    assert prune(runs, failed=True, weights=True).empty
    assert not (runs / "interrupted").exists()
    with pytest.raises(TypeError, match="'checkpoints' is now named 'weights'"):
        prune(runs, checkpoints=True)


def test_runs_that_are_being_recorded_are_left_alone(runs):
    recorder = RunRecorder(runs, EXAMPLES, EXAMPLES[:3])
    with recorder.run("now", model=nn.Linear(1, 1), loss=loss) as run:
        run.step(["e0"])
        assert list_runs(runs).set_index("run")["status"]["now"] == "running"
        assert verify(runs).empty
        assert "now" not in set(prune(runs, failed=True, weights=True, dry_run=False)["run"])
