"""The journal of a run that is being recorded: an Arrow stream with one record batch for each step.

``append`` hands an entry to the operating system, in one write, before it returns. A process that is killed
therefore loses none of the entries it has appended. If it is killed within a write, the last entry is
incomplete (a torn tail): readers ignore it, and only that step is lost. Every message carries a checksum in
its metadata, so that damage before the tail is noticed. (Arrow's own streams have no checksums, and reading a
damaged one can end the process.)
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
    """A journal that is being written. It replaces a file that may be at ``path``."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        self._size = 0
        self._pieces = _Pieces()
        # Arrow writes the schema with the first entry
        self._stream = pa.ipc.new_stream(self._pieces, schema.with_metadata({"checksum": _UNSET}))

    def append(self, batch: pa.RecordBatch) -> None:
        """Write one entry. On an OSError (a full disk, a deleted file) the journal stays as it was before."""
        self._stream.write_batch(batch, custom_metadata={"checksum": _UNSET})
        self._write_pieces()

    def sync(self) -> None:
        """Wait until the entries are on the disk itself, so that not even a power cut loses them."""
        os.fsync(self._file)

    def move(self, path: Path) -> None:
        """Rename the journal, replacing a file that may be there. Later entries go to the renamed file."""
        os.replace(self._path, path)
        self._path = path

    def close(self) -> None:
        """Write the end mark and close the file. A journal without the mark reads the same."""
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
        """Write all of a message or, on an OSError, nothing of it."""
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
        """Raises FileNotFoundError if the file was deleted or moved: what is written to it would be lost."""
        if not os.path.samestat(os.stat(self._path), os.fstat(self._file)):
            raise FileNotFoundError(f"{self._path} was replaced while it was being written")


class _Pieces(io.RawIOBase):
    """Collects what Arrow writes, so that an entry goes to the file in one write."""

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
    """The record batches of a journal, whether it is finished or not. A torn tail is ignored.

    Raises RunDataError if the file is missing, or if an entry before the tail is damaged.
    """
    if not path.is_file():
        raise RunDataError(f"{path} is missing: nothing was recorded, or the file was moved away")
    yield from Follower(path).new()


class Follower:
    """Reads a journal while it is being written, each entry once. It takes no lock, and writes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self.entries = 0
        """How many were read."""
        self._schema: pa.Schema | None = None
        self._place, self._file = 0, (0, 0)

    def new(self) -> Iterator[pa.RecordBatch]:
        """The entries since the last call; from the first one, where the file was replaced by another.

        Raises RunDataError if an entry before the tail is damaged.
        """
        with pa.OSFile(str(self._path), "rb") as file:
            about = self._path.stat()
            if (about.st_dev, about.st_ino) != self._file or file.size() < self._place:
                self._begin()
                self._file = (about.st_dev, about.st_ino)
            file.seek(self._place)
            damaged = f"{self._path} is damaged after {self.entries} entries"
            while (message := _next_message(file, damaged)) is not None:
                self._place = file.tell()
                if self._schema is None:
                    self._schema = pa.ipc.read_schema(message).remove_metadata()
                    continue
                self.entries += 1
                damaged = f"{self._path} is damaged after {self.entries} entries"
                yield pa.ipc.read_record_batch(message, self._schema)


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
    """Whether the message that begins there is incomplete and the last one in the file."""
    file.seek(start)
    tail = file.read()
    return tail[:4] == _BEGINNING[: len(tail)] and tail.count(_MARK) <= 1


def _with_checksums(data: bytes) -> bytes:
    """Serialized messages, after the checksum of each is put into the place reserved for it."""
    reader = pa.BufferReader(data)
    messages = []
    while (start := reader.tell()) < len(data):
        _, found = _checksums(pa.ipc.read_message(reader))
        message = data[start : reader.tell()]
        place = message.index(_UNSET.encode()) + len(_MARK)
        messages.append(message[:place] + found + message[place + len(found) :])
    return b"".join(messages)


def _checksums(message: pa.Message) -> tuple[bytes, bytes]:
    """The checksum in a message's metadata, and that of its body and the rest of its metadata."""
    metadata = message.metadata.to_pybytes()
    place = metadata.find(_MARK) + len(_MARK)
    said = metadata[place : place + 8]
    crc = zlib.crc32(metadata[place + 8 :], zlib.crc32(metadata[:place]))
    if message.body is not None:
        crc = zlib.crc32(message.body, crc)
    return said, f"{crc:08x}".encode()
