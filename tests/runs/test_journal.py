"""The journal: torn anywhere it loses one entry at most, and damage elsewhere is noticed."""

from __future__ import annotations

import errno
import os

import numpy as np
import pyarrow as pa
import pytest

from simfluence.errors import RunDataError
from simfluence.runs import journal, rows

SCHEMA = rows.steps_schema({"loss": np.dtype("float32"), "margin": np.dtype("float64")}, 3)


def entry(step: int) -> pa.RecordBatch:
    values = np.arange(3) + step / 7
    metrics = {"loss": values.astype("float32"), "margin": values} if step % 2 == 0 else None
    return rows.step_row(SCHEMA, step, [step, 1][: min(step, 2)], 0.1, 1 / 3, metrics)


@pytest.fixture
def written(tmp_path):
    """A journal of four entries, and where each ends."""
    path = tmp_path / "journal.arrow"
    writing = journal.Journal(path, SCHEMA)
    ends = []
    for step in range(4):
        writing.append(entry(step))
        ends.append(path.stat().st_size)
    writing.close()
    return path, ends


def test_what_was_appended_can_be_read_at_once_and_by_arrow_itself(written):
    path, _ = written
    assert list(journal.read(path)) == [entry(step) for step in range(4)]
    with pa.ipc.open_stream(path) as stream:
        assert stream.read_all().column("step").to_pylist() == [0, 1, 2, 3]


def test_torn_at_any_byte_of_it_the_last_entry_is_all_that_is_lost(written):
    path, ends = written
    whole = path.read_bytes()
    for size in [*range(0, ends[2], 7), *range(ends[2], len(whole) + 1)]:
        path.write_bytes(whole[:size])
        expected = sum(end <= size for end in ends)
        assert list(journal.read(path)) == [entry(step) for step in range(expected)], size


def test_a_changed_byte_is_noticed_wherever_it_is(written):
    path, ends = written
    whole = path.read_bytes()
    for place in range(0, ends[2], 3):  # in the last entry it may look like a torn one
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(RunDataError, match="damaged after"):
            list(journal.read(path))
    for place in range(ends[2], ends[3], 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            left = list(journal.read(path))
        except RunDataError:
            continue
        assert left == [entry(step) for step in range(3)]


def test_a_write_that_fails_halfway_leaves_whole_entries(tmp_path, monkeypatch):
    path = tmp_path / "journal.arrow"
    writing = journal.Journal(path, SCHEMA)
    writing.append(entry(0))
    write = os.write
    room = [100, 0]

    def short(file, data):
        if not (space := room.pop(0)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, bytes(data)[:space])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        with pytest.raises(OSError, match="No space"):
            writing.append(entry(1))
    assert list(journal.read(path)) == [entry(0)]
    writing.append(entry(1))  # there is room again
    writing.close()
    assert list(journal.read(path)) == [entry(0), entry(1)]


def test_nothing_written_and_nothing_there(tmp_path):
    path = tmp_path / "journal.arrow"
    journal.Journal(path, SCHEMA).close()
    assert list(journal.read(path)) == []
    path.write_bytes(b"not a journal, but long enough to be one" * 10)
    with pytest.raises(RunDataError, match="damaged after 0 entries"):
        list(journal.read(path))
    with pytest.raises(RunDataError, match="is missing"):
        list(journal.read(tmp_path / "other"))


def test_a_journal_that_was_replaced_is_not_written_on(tmp_path):
    path = tmp_path / "journal.arrow"
    writing = journal.Journal(path, SCHEMA)
    writing.append(entry(0))
    (tmp_path / "new").write_bytes(b"")
    os.replace(tmp_path / "new", path)
    with pytest.raises(FileNotFoundError, match="replaced"):
        writing.append(entry(1))
    writing.close()
