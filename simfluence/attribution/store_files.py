"""The files of a store of gradients.

    <folder>/
      store.json                 the manifest: what the gradients are of, and how they were projected
      scales.safetensors         what each number of a gradient is multiplied by (Adam's metric); else none
      factors.safetensors        of the Fisher matrix (EK-FAC's metric); else none
      landmarks.safetensors      a basis of the sketches of some training examples; none if landmarks=0
      shard-00000.safetensors    gradients float16 [example, k] and scale float64 [example] of some examples
      sums-1-of-2.safetensors    while sizes are taken: what a process has added up

A gradient is its row of ``gradients`` times its ``scale``, which is such that the largest number of the row
is 2¹⁵: nothing overflows, and numbers down to 10⁻⁹ of the largest keep their digits. Every file is written
whole or not at all, and says which manifest it belongs to. Shards that other machines wrote are copied into
the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import save_file
from torch import Tensor

from simfluence.attribution.landmarks import drawn
from simfluence.errors import RunDataError
from simfluence.runs import strict_json
from simfluence.runs.storage import write_atomically

FORMAT = "simfluence gradients 2"
MANIFEST, SCALES, LANDMARKS = "store.json", "scales.safetensors", "landmarks.safetensors"
_LARGEST = 2.0**15


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    examples : of the training table. shard_rows : examples a shard.
    k : numbers a gradient. width : numbers of the first, wide sketch. landmarks : how many training examples'
        sketches shorten it to k (0: none, and the width is k). seed : of the projection.
    parameters : names and shapes.
    metric : "batch", "eps" and "rates", as far as the optimizer's step has them; "size_examples", where
        Adam's sizes are taken from so many training examples and not from all. Of EK-FAC "fisher". units : of
        scores.
    weights, train, projection : fingerprints of the model's parameters, of the training table ("" if not
        known) and of the sketch.
    step : of the run. coverage : as of scores. version : of simfluence.
    """

    examples: int
    shard_rows: int
    k: int
    width: int
    landmarks: int
    seed: int
    parameters: Mapping[str, list[int]]
    metric: Mapping[str, Any]
    units: str
    weights: str
    train: str
    projection: str
    step: int
    coverage: float | None
    version: str
    format: str = FORMAT

    @property
    def fingerprint(self) -> str:
        """A hash over all but the version."""
        content = json.dumps({**asdict(self), "version": ""}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def shards(self) -> int:
        return -(-self.examples // self.shard_rows)

    def rows(self, shard: int) -> range:
        """The training examples that a shard holds."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.examples))

    def drawn_landmarks(self) -> list[int]:
        """The training examples that are landmarks."""
        return drawn(self.examples, self.landmarks, self.seed)

    def keep(self, folder: Path) -> None:
        """Write the manifest into a folder, or raise RunDataError if a store of something else lies there."""
        if (folder / MANIFEST).exists():
            there = Manifest.read(folder)
            for name in (field.name for field in fields(self) if field.name != "version"):
                ours, theirs = getattr(self, name), getattr(there, name)
                if ours != theirs:
                    raise RunDataError(
                        f"{folder} is a store of gradients with other {name} ({_short(theirs)} instead of"
                        f" {_short(ours)}): choose another folder, or delete that one"
                    )
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MANIFEST, strict_json.dumps(asdict(self)).encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in a folder; RunDataError if there is none, or it is damaged."""
        file = folder / MANIFEST
        if not file.is_file():
            raise RunDataError(f"{folder} is no store of gradients: `simfluence gradients` makes one")
        try:
            found = strict_json.loads(file.read_text(encoding="utf-8"))
            if found.get("format") != FORMAT:
                raise RunDataError(f"{file} has format {found.get('format')!r}, expected {FORMAT!r}")
            return cls(**found)
        except (TypeError, ValueError) as error:
            raise RunDataError(f"{file} is damaged: {error}") from error


def shard_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def write_shard(folder: Path, manifest: Manifest, shard: int, gradients: npt.NDArray[np.floating]) -> None:
    """gradients [example, k] of the shard's rows, all finite."""
    rows = manifest.rows(shard)
    narrow, scale = narrowed(gradients)
    about = {"store": manifest.fingerprint, "start": str(rows.start), "stop": str(rows.stop)}
    write_atomically(shard_file(folder, shard), save({"gradients": narrow, "scale": scale}, about))


def tidy(folder: Path) -> None:
    """Remove what processes that were cut off left of a store that is complete."""
    for pattern in ("sums-*", "shard-*.tmp", f"{SCALES}.*", f"{LANDMARKS}.*"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def narrowed(gradients: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float64]]:
    """float16 [example, k] and scale [example]; gradients are their product.

    Raises RunDataError if a gradient is not finite.
    """
    wide = gradients.astype(np.float64)
    if not np.isfinite(wide).all():
        bad = int(np.flatnonzero(~np.isfinite(wide).all(1))[0])
        raise RunDataError(f"the gradient of example {bad} of this shard is not finite: its loss may not be")
    scale = np.abs(wide).max(1) / _LARGEST
    scale[scale == 0] = 1.0
    return (wide / scale[:, None]).astype(np.float16), scale


def write_once(file: Path, arrays: dict[str, Tensor], manifest: Manifest) -> None:
    """Write large arrays, on the CPU, to a file as a whole, without a copy of them in memory; if another
    process has written it by then, its file stays."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    save_file(arrays, temporary, {"store": manifest.fingerprint})
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def check_belongs(file: Path, manifest: Manifest) -> None:
    """RunDataError if a file is damaged or of another store than the manifest's."""
    if read_about(file).get("store") != manifest.fingerprint:
        raise RunDataError(
            f"{file} belongs to a store of other weights, examples or settings than the {MANIFEST} beside it:"
            " remove it, and write its gradients again"
        )


def read_about(file: Path) -> dict[str, str]:
    """What a file of a store says of itself."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise RunDataError(f"{file} is damaged or no safetensors file: {error}") from error


def mapped(file: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file, mapped into memory: they are read as they are used."""
    types = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, about in header.items():
        place = 8 + size + about["data_offsets"][0]
        arrays[name] = np.memmap(file, types[about["dtype"]], "r", place, tuple(about["shape"]))
    return arrays


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
