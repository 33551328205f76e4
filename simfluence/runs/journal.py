"""The crash-safe journal of a run being recorded: an Arrow stream, one record batch a step.

Every entry is handed to the operating system, in one write, before ``append`` returns: a killed process
loses nothing that it had appended, and a kill within a write leaves a torn tail, which costs that step
alone. Every message carries a checksum of itself in its metadata (Arrow's streams have none, and reading a
damaged one can end the process), so that damage before the tail is noticed.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from simfluence.errors import RunDataError

_MARK = b"crc32="
_BEGINNING = b"\xff\xff\xff\xff"  # of every message
_UNSET = "crc32=........"  # as long as what takes its place


class Journal:
    """A journal being written; made anew, in place of what may be at ``path``."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        self._size = 0
        self._pieces = _Pieces()
        # Arrow writes the schema with the first entry
        self._stream = pa.ipc.new_stream(self._pieces, schema.with_metadata({"checksum": _UNSET}))

    def append(self, batch: pa.RecordBatch) -> None:
        """Write one entry; by an OSError (a full disk, a vanished file) none, and the earlier ones stay."""
        self._stream.write_batch(batch, custom_metadata={"checksum": _UNSET})
        self._write_pieces()

    def sync(self) -> None:
        """Wait until the entries are on the disk itself, so that not even a power cut loses them."""
        os.fsync(self._file)

    def move(self, path: Path) -> None:
        """Take that name, in place of what may have it; entries go on being appended."""
        os.replace(self._path, path)
        self._path = path

    def close(self) -> None:
        """Finish the stream; without its end mark, should that not go onto the disk, it reads the same."""
        try:
            self._stream.close()
            if self._size:
                self._write(self._pieces.take())
        except OSError:
            pass
        finally:
            os.close(self._file)

    def _write_pieces(self) -> None:
        self._write(_with_checksums(self._pieces.take()))

    def _write(self, message: bytes) -> None:
        """All of it or, by an OSError, none."""
        data = memoryview(message)
        try:
            self._check_there()
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(message)

    def _check_there(self) -> None:
        """Writing to a file that was deleted or moved away succeeds, and is lost."""
        if not os.path.samestat(os.stat(self._path), os.fstat(self._file)):
            raise FileNotFoundError(f"{self._path} was replaced while it was being written")


class _Pieces(io.RawIOBase):
    """Where Arrow writes, so that an entry can go to the file in one piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        self._position += len(self._pieces[-1])
        return len(self._pieces[-1])

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def read(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a journal, finished or not, up to a torn tail.

    Raises RunDataError if the file is missing or a whole entry is not what was written.
    """
    if not path.is_file():
        raise RunDataError(f"{path} is missing: nothing was recorded, or the file was moved away")
    schema: pa.Schema | None = None
    entries = 0
    with pa.OSFile(str(path), "rb") as file:
        while (message := _next_message(file, f"{path} is damaged after {entries} entries")) is not None:
            if schema is None:
                schema = pa.ipc.read_schema(message).remove_metadata()
                continue
            yield pa.ipc.read_record_batch(message, schema)
            entries += 1


def _next_message(file: pa.NativeFile, damaged: str) -> pa.Message | None:
    """The next whole message; None at the end of the stream or at a torn tail."""
    start = file.tell()
    try:
        message = pa.ipc.read_message(file)
    except EOFError:
        return None
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        if file.tell() == file.size() and _is_torn(file, start):
            return None
        raise RunDataError(f"{damaged}: {error}") from error
    said, found = _checksums(message)
    if said != found:
        raise RunDataError(f"{damaged}: what follows has checksum {found!r}, not {said!r}")
    return message


def _is_torn(file: pa.NativeFile, start: int) -> bool:
    """Whether what begins there is the last entry, cut off: no other follows within the file."""
    file.seek(start)
    tail = file.read()
    return tail[:4] == _BEGINNING[: len(tail)] and tail.count(_MARK) <= 1


def _with_checksums(data: bytes) -> bytes:
    """Serialized messages, each with its checksum in the place that was kept for it."""
    reader = pa.BufferReader(data)
    messages = []
    while (start := reader.tell()) < len(data):
        _, found = _checksums(pa.ipc.read_message(reader))
        message = data[start : reader.tell()]
        place = message.index(_UNSET.encode()) + len(_MARK)
        messages.append(message[:place] + found + message[place + len(found) :])
    return b"".join(messages)


def _checksums(message: pa.Message) -> tuple[bytes, bytes]:
    """The checksum that a message says it has, and that of its metadata (this left out) and body."""
    metadata = message.metadata.to_pybytes()
    place = metadata.find(_MARK) + len(_MARK)
    said = metadata[place : place + 8]
    crc = zlib.crc32(metadata[place + 8 :], zlib.crc32(metadata[:place]))
    if message.body is not None:
        crc = zlib.crc32(message.body, crc)
    return said, f"{crc:08x}".encode()
