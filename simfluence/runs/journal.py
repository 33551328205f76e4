"""The crash-safe journal of a run being recorded: an Arrow stream, one record batch a step.

Every batch is with the operating system before ``append`` returns, so that a killed process loses
nothing that it had appended; a kill within a write leaves a torn tail, which costs that step alone.
Each batch carries a checksum (Arrow's streams have none), so that damage before the tail is noticed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from simfluence.errors import RunDataError

_CHECKSUM = "crc32"


class Journal:
    """A journal being written; made anew, in place of what may be at ``path``."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pa.OSFile(str(path), "wb")  # unbuffered: each write goes to the system at once
        self._stream = pa.ipc.new_stream(self._file, schema)

    def append(self, batch: pa.RecordBatch) -> None:
        self._stream.write_batch(batch, custom_metadata={_CHECKSUM: _checksum(batch)})

    def close(self) -> None:
        self._stream.close()
        self._file.close()


def read(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a journal, finished or not, up to a torn tail.

    Raises RunDataError if the file is missing or a whole batch is not what was written.
    """
    if not path.is_file():
        raise RunDataError(f"{path} is missing: nothing was recorded, or the file was moved away")
    with pa.OSFile(str(path), "rb") as file:
        try:
            stream = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            return  # killed before the header was written
        row = 0
        while True:
            try:
                entry = stream.read_next_batch_with_custom_metadata()
            except StopIteration:
                return
            except (pa.ArrowInvalid, OSError) as error:
                if file.tell() < file.size():
                    raise RunDataError(f"{path} is damaged after {row} entries: {error}") from error
                return  # the torn tail
            said = (entry.custom_metadata or {}).get(_CHECKSUM.encode(), b"").decode()
            if said != _checksum(entry.batch):
                raise RunDataError(f"{path} is damaged: entry {row} does not have its checksum")
            yield entry.batch
            row += 1


def _checksum(batch: pa.RecordBatch) -> str:
    return str(zlib.crc32(batch.serialize()))
