"""Watching runs while another process records them."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families import synthetic_runs

from simfluence import RunSet
from simfluence.errors import RunDataError
from simfluence.runs import journal, live, rows, storage
from simfluence.runs.live import Watch, as_text, duration, progress_bar, watch

SCHEMA = rows.steps_schema({"loss": np.dtype("float64")}, 2)


class Recording:
    """The other process: a step at a time."""

    def __init__(self, folder: Path) -> None:
        script = str(Path(__file__).with_name("live_training.py"))
        self.process = subprocess.Popen(
            [sys.executable, script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hears(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n"

    def step(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        self.hears("stepped")


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    found = Recording(tmp_path)
    yield found
    found.process.kill()
    found.process.communicate()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_recording_in_another_process(recording: Recording, tmp_path: Path) -> None:
    recording.hears("begun")
    watched = Watch(tmp_path)
    first = watched.look().iloc[0]
    assert tuple(first[["run", "status", "step", "of"]]) == ("a", "running", 0, 4)
    assert np.isnan(first["left"])
    losses = [first["loss"]]
    for step in range(1, 4):
        recording.step()
        (row,) = watched.look().itertuples()
        assert (row.step, row.progress.split()[-1]) == (step, f"{step / 4:.0%}")
        assert row.left >= 0
        losses.append(row.loss)
    in_an_hour = watched.look(now=(tmp_path / "a" / "journal.arrow").stat().st_mtime + 3600)
    assert in_an_hour["last step"].item() == pytest.approx(3600, abs=1)
    recording.step()
    recording.hears("ended")
    recording.hears("begun")
    (ended, begun) = watched.look().itertuples()
    assert (ended.run, ended.status, ended.step) == ("a", "complete", 4)
    assert (begun.run, begun.status, begun.step) == ("b", "running", 0)
    recorded = storage.read_run(tmp_path / "a", 24, 6)
    np.testing.assert_allclose([*losses, ended.loss], recorded.loss.mean(1), rtol=1e-6)
    recording.step()
    recording.process.kill()
    recording.process.wait()
    assert list(watched.look()["status"]) == ["complete", "interrupted"]
    assert Watch(tmp_path).look().empty


def test_the_table_is_refreshed_until_all_have_ended(recording: Recording, tmp_path: Path) -> None:
    recording.hears("begun")
    left = iter(range(8))

    def sleep(seconds: float) -> None:
        assert seconds == 1
        if (step := next(left, None)) is not None:
            recording.step()
            if step in (3, 7):
                recording.hears("ended")
            if step == 3:
                recording.hears("begun")

    terminal = Terminal()
    watch(tmp_path, terminal, patience=3, sleep=sleep)
    tables = terminal.getvalue().split("\x1b[J")
    assert len(tables) == 1 + 8 + 2  # until patience ends, which the last step began
    heights = [table.split("\x1b")[0].strip("\n").count("\n") + 1 for table in tables]
    moved = [int(table.split("\x1b[")[1].split("F")[0]) for table in tables[:-1]]
    assert moved == heights[:-1]
    assert tables[-1].count("complete") == 2
    assert RunSet.load(tmp_path).ids == ["a", "b"]


def test_ctrl_c_ends_it_and_what_is_no_terminal_gets_two_tables(recording: Recording, tmp_path: Path) -> None:
    recording.hears("begun")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    file = io.StringIO()
    watch(tmp_path, file, sleep=interrupted)
    assert file.getvalue().count("| running") == 2
    assert "\x1b" not in file.getvalue()


def test_where_nothing_is_recorded(tmp_path: Path, simfluence) -> None:
    synthetic_runs(n_runs=2)[0].save(tmp_path / "runs" / "small")
    said = simfluence("runs", "path=runs/small", "watch=true", cwd=tmp_path)
    assert said.stdout == "no run is being recorded in runs/small\n"
    both = simfluence("runs", "path=runs/small", "watch=true", "more=true", cwd=tmp_path)
    assert "give only one of more, watch" in both.stderr
    with pytest.raises(RunDataError, match="is no run set"):
        watch(tmp_path / "runs" / "small" / "run-000")


def test_the_lock_of_a_run_that_is_not_recorded_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a run that begins at this moment would find it taken."""
    synthetic_runs(n_runs=1)[0].save(tmp_path)
    manifest = storage.read_manifest(tmp_path / "run-000")
    storage.write_manifest(tmp_path / "run-000", {**manifest, "status": "running"})
    asked: list[Path] = []
    status = storage.status
    monkeypatch.setattr(storage, "status", lambda folder: asked.append(folder) or status(folder))
    watched = Watch(tmp_path)
    for _ in range(3):
        assert watched.look().empty
    assert len(asked) == 1


def entry(step: int) -> pd.DataFrame:
    return rows.step_row(SCHEMA, step, [1], 0.1, 1.0, {"loss": np.full(2, float(step))})


def test_a_follower_reads_every_entry_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.arrow"
    writing = journal.Journal(path, SCHEMA)
    follower = journal.Follower(path)
    assert list(follower.new()) == []
    for step in range(3):
        writing.append(entry(step))
        assert list(follower.new()) == [entry(step)]
        assert list(follower.new()) == []
    whole = path.read_bytes()
    writing.append(entry(3))
    data = path.read_bytes()
    for size in range(len(whole), len(data)):  # while the next one is being written
        with path.open("r+b") as file:
            file.truncate(size)
        assert list(follower.new()) == []
        with path.open("r+b") as file:
            file.write(data)
        assert follower.entries == 3
    assert list(follower.new()) == [entry(3)]
    writing.close()
    assert list(follower.new()) == []
    again = journal.Journal(tmp_path / "other", SCHEMA)
    again.append(entry(0))
    again.move(path)
    assert list(follower.new()) == [entry(0)]
    assert follower.entries == 1
    again.close()


def test_how_progress_and_time_are_written() -> None:
    assert progress_bar(0, 4) == "░" * 12 + "   0%"
    assert progress_bar(2, 4) == "█" * 6 + "░" * 6 + "  50%"
    assert progress_bar(9, 4) == "█" * 12 + " 100%"
    assert progress_bar(9, None) == ""
    assert [duration(s) for s in (5, 65, 3661, np.nan)] == ["0:05", "1:05", "1:01:01", "–"]


def test_long_tables_are_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("s", "r", "running", 1, None, "", np.nan, np.nan, np.nan)
    ended = ("s", "ended", "complete", 4, 4, progress_bar(4, 4), np.nan, 1.0, np.nan)
    monkeypatch.setattr(live.shutil, "get_terminal_size", lambda fallback: (30, 10))
    lines = as_text(pd.DataFrame([ended, *[row] * 7], columns=live.COLUMNS)).splitlines()
    assert lines[-1] == "and 3 more"
    assert len(lines) == 8
    assert max(map(len, lines)) == 30
    assert not any("ended" in line for line in lines)
