"""Full disks, read-only and vanished folders: a clear error, or training without recording; never damage."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess

import pytest
from tiny import TEST, TRAIN, Training, bits, per_example

from simfluence.errors import RecordingError
from simfluence.recording import RecordingStoppedWarning, RunRecorder
from simfluence.runs import RunSet, storage


@contextlib.contextmanager
def small_disk(place, size="1m"):
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))


def train(recorder, run_id, steps=6, between=None, **options):
    """Six steps; ``between`` happens after the third."""
    training = Training(steps=steps)
    with recorder.run(
        run_id, model=training.model, loss=per_example, optimizer=training.optimizer, **options
    ) as run:
        for step in range(steps):
            ids, loss = training.step()
            run.step(ids, train_loss=loss)
            if between is not None and step == 2:
                between()
    return training


@pytest.fixture
def unrecorded():
    training = Training(steps=6)
    for _ in range(6):
        training.step()
    return bits(training.model)


@pytest.mark.parametrize("resume_every", [None, 4])
def test_a_full_disk_with_an_error(tmp_path, resume_every):
    with small_disk(tmp_path / "disk") as disk:
        recorder = RunRecorder(disk / "set", TRAIN, TEST)
        train(recorder, "earlier")
        earlier = {file: file.read_bytes() for file in (disk / "set" / "earlier").iterdir()}
        with pytest.raises(RecordingError, match=r"No space left.*up to step [4-6] is as it was"):
            # the journal's file may have room left for an entry or two
            train(recorder, "run", 60, lambda: fill(disk), resume_every=resume_every)
        assert storage.status(disk / "set" / "run") in ("failed", "interrupted")
        assert all(file.read_bytes() == before for file, before in earlier.items())
        left = RunSet.load(disk / "set", incomplete=True)
        assert len(left[1]) >= 3
        (disk / "filler").unlink()
        train(recorder, "run", restart=True)
        assert len(RunSet.load(disk / "set")) == 2


def test_a_full_disk_and_training_goes_on(tmp_path):
    alone = Training(steps=60)
    for _ in range(60):
        alone.step()
    with small_disk(tmp_path / "disk") as disk:
        recorder = RunRecorder(disk / "set", TRAIN, TEST, on_error="continue")
        train(recorder, "earlier")
        with pytest.warns(RecordingStoppedWarning, match="training goes on without recording") as said:
            training = train(recorder, "run", 60, lambda: fill(disk))
        assert len(said) == 1
        assert bits(training.model) == bits(alone.model)
        assert 3 <= len(RunSet.load(disk / "set", incomplete=True)[1]) < 60
        assert len(storage.read_run(disk / "set" / "earlier", len(TRAIN), len(TEST))) == 6


def test_a_disk_that_fills_up_at_the_very_end(tmp_path, monkeypatch):
    """The journal stays until the Parquet file is whole."""
    recorder = RunRecorder(tmp_path, TRAIN, TEST)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "_write_parquet", full)
        with pytest.raises(RecordingError, match="No space left"):
            train(recorder, "run", resume_every=5)
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert len(RunSet.load(tmp_path, incomplete=True)[0]) == 6
    training = Training(steps=6)
    with recorder.run(
        "run", model=training.model, loss=per_example, optimizer=training.optimizer, resume=True
        , state={"model": training.model, "optimizer": training.optimizer}) as run:  # fmt: skip
        assert run.start == 5
        run.step(training.step()[0])
    assert len(RunSet.load(tmp_path)[0]) == 6


def test_a_folder_that_vanishes_with_an_error(tmp_path):
    recorder = RunRecorder(tmp_path / "set", TRAIN, TEST)
    with pytest.raises(RecordingError, match=r"cannot write run 'run'.*No such file"):
        train(recorder, "run", between=lambda: shutil.rmtree(tmp_path / "set"))


def test_a_folder_that_vanishes_and_training_goes_on(tmp_path, unrecorded):
    recorder = RunRecorder(tmp_path / "set", TRAIN, TEST, on_error="continue")
    with pytest.warns(RecordingStoppedWarning):
        training = train(
            recorder, "run", between=lambda: shutil.rmtree(tmp_path / "set"), keep_weights="every"
        )
    assert bits(training.model) == unrecorded


def test_a_folder_that_is_moved_keeps_what_it_had(tmp_path):
    recorder = RunRecorder(tmp_path / "set", TRAIN, TEST)
    with pytest.raises(RecordingError, match="No such file"):
        train(recorder, "run", between=lambda: os.rename(tmp_path / "set", tmp_path / "moved"))
    assert len(RunSet.load(tmp_path / "moved", incomplete=True)[0]) == 3


def test_a_place_where_no_folder_can_be(tmp_path, unrecorded):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="cannot record into"):
        RunRecorder(tmp_path / "file" / "set", TRAIN, TEST)
    with pytest.warns(RecordingStoppedWarning, match="without recording"):
        recorder = RunRecorder(tmp_path / "file" / "set", TRAIN, TEST, on_error="continue")
    training = train(recorder, "run", resume_every=2, keep_weights="every")
    assert bits(training.model) == unrecorded
    with pytest.raises(ValueError, match="on_error"):
        RunRecorder(tmp_path, TRAIN, TEST, on_error="ignore")


@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_a_read_only_folder(tmp_path, on_error, unrecorded):
    with small_disk(tmp_path / "disk") as disk:
        recorder = RunRecorder(disk / "set", TRAIN, TEST, on_error=on_error)
        train(recorder, "earlier")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        if on_error == "raise":
            with pytest.raises(RecordingError, match="Read-only file system"):
                train(recorder, "run")
        else:
            with pytest.warns(RecordingStoppedWarning, match="Read-only file system"):
                training = train(recorder, "run")
            assert bits(training.model) == unrecorded
        assert len(RunSet.load(disk / "set")) == 1
