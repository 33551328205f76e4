"""Reads the variables of a TensorFlow checkpoint, without TensorFlow.

A checkpoint is ``X.index`` and ``X.data-00000-of-00001``. The index is a table in LevelDB's format: blocks
of entries (shared prefix, rest of the key, value), each followed by its compression (0 none, 1 Snappy) and a
checksum; a footer of 48 bytes points to a block that lists the blocks. A value is a protocol buffer
(BundleEntryProto): 1 type, 2 shape, 3 shard, 4 offset and 5 size in the data file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_FLOAT = 1
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")


def read_variables(index: bytes, data: bytes) -> dict[str, npt.NDArray[np.float32]]:
    """Name → values of every float32 variable of a checkpoint in one shard.

    Raises ValueError if this is no such checkpoint.
    """
    if index[-8:] != _MAGIC:
        raise ValueError("this is not the index of a TensorFlow checkpoint")
    footer = index[-48:]
    position = _varint(footer, _varint(footer, 0)[1])[1]  # past the place of the block of meta blocks
    found = {}
    for _, place in _entries(_block(index, *_handle(footer, position))):
        for key, value in _entries(_block(index, *_handle(place, 0))):
            entry = dict(_fields(value))
            if not key or entry.get(1) != _FLOAT:
                continue  # the header; a variable of another type
            if entry.get(3, 0) != 0:
                raise ValueError("the checkpoint has several shards; only one is read")
            shape = [
                dict(_fields(size)).get(1, 0) for number, size in _fields(entry.get(2, b"")) if number == 2
            ]
            start, size = entry.get(4, 0), entry[5]
            if start + size > len(data):
                raise ValueError(f"the data file ends before variable {key.decode()!r} does")
            found[key.decode()] = np.frombuffer(data[start : start + size], "<f4").reshape(shape)
    return found


def _handle(content: bytes, position: int) -> tuple[int, int]:
    """(offset, size) of a block."""
    offset, position = _varint(content, position)
    return offset, _varint(content, position)[0]


def _block(content: bytes, offset: int, size: int) -> bytes:
    block, compression = content[offset : offset + size], content[offset + size]
    if compression not in (0, 1):
        raise ValueError(f"block compression {compression} is unknown")
    return _unsnappy(block) if compression else block


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every entry of a block."""
    restarts = int.from_bytes(block[-4:], "little")
    end, position, key = len(block) - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)
        more, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + more]
        position += more
        yield key, block[position : position + length]
        position += length


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field of a protocol buffer: an int, or bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} is unknown")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """(number, position after it); seven bits a byte, the lowest first."""
    number = shift = 0
    while True:
        byte = content[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position


def _unsnappy(content: bytes) -> bytes:
    """Snappy: literals, and copies of what came before."""
    size, position = _varint(content, 0)
    out = bytearray()
    while position < len(content):
        tag = content[position]
        position += 1
        if tag & 3 == 0:
            length = tag >> 2
            if length >= 60:
                width = length - 59
                length = int.from_bytes(content[position : position + width], "little")
                position += width
            out += content[position : position + length + 1]
            position += length + 1
            continue
        if tag & 3 == 1:
            length, offset = 4 + (tag >> 2 & 7), (tag >> 5) << 8 | content[position]
            position += 1
        else:
            width = 2 if tag & 3 == 2 else 4
            length, offset = 1 + (tag >> 2), int.from_bytes(content[position : position + width], "little")
            position += width
        for _ in range(length):  # a copy may run into what it writes
            out.append(out[-offset])
    if len(out) != size:
        raise ValueError(f"a compressed block should have {size} bytes, got {len(out)}")
    return bytes(out)
