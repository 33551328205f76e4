"""The projection of a store: its sketch in the optimizer's metric, and the basis of its landmarks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from simfluence.attribution.landmarks import Basis, Projection, basis_of
from simfluence.attribution.sketch import Sketch
from simfluence.attribution.store_files import LANDMARKS, Manifest, check_belongs, write_once
from simfluence.attribution.store_sizes import Work, read_scales
from simfluence.attribution.store_whitening import WhitenedSketch, is_whitened, read_whitened
from simfluence.attribution.tracing import Traced, Tracer
from simfluence.errors import RunDataError


def read_projection(folder: Path, manifest: Manifest, trace: Tracer) -> Projection:
    """The projection of the store in a folder, of the gradients that ``trace`` takes.

    Raises RunDataError if a file of it is missing, damaged or of another store, or if the random numbers are
    not those of the store.
    """
    sketch = _read_sketch(folder, manifest, trace)
    if sketch.fingerprint != manifest.projection:
        raise RunDataError(
            f"{folder} was projected by other random signs than are drawn here: it was written by simfluence"
            f" {manifest.version}, perhaps with another version of numpy"
        )
    basis = None
    if manifest.landmarks:
        check_belongs(folder / LANDMARKS, manifest)
        device = next(iter(trace.parameters.values())).device
        basis = Basis(**load_file(folder / LANDMARKS, device=str(device)))
    return Projection(sketch, basis, manifest.k, manifest.seed)


def _read_sketch(folder: Path, manifest: Manifest, trace: Tracer) -> Sketch | WhitenedSketch:
    if is_whitened(manifest.metric):
        return read_whitened(folder, manifest, trace)
    return Sketch(trace.parameters, manifest.width, manifest.seed, read_scales(folder, manifest, trace))


def make_basis(work: Work) -> None:
    """Make the basis of a store's landmarks if it is not there yet.

    Of several processes, the first makes it; another one does if it does not appear while it waits.
    """
    manifest, file = work.manifest, work.folder / LANDMARKS
    if not manifest.landmarks:
        return
    until = time.monotonic() + (work.wait if work.share[0] > 1 else 0.0)
    while not file.exists():
        if time.monotonic() < until:
            time.sleep(0.5)
            continue
        sketch = _read_sketch(work.folder, manifest, work.trace)
        which = manifest.drawn_landmarks()
        basis = basis_of(_sketched(sketch, work.batches("landmarks", which), len(which)))
        arrays = {name: array.cpu() for name, array in basis._asdict().items()}
        write_once(file, arrays, manifest)


def _sketched(sketch: Sketch | WhitenedSketch, batches: Iterable[Traced], examples: int) -> Tensor:
    """[example, K] of some batches. It is large, and so in memory once."""
    found, start = torch.empty(0), 0
    for some in map(sketch, batches):  # map keeps no batch while the next is traced
        found = found if start else some.new_empty(examples, some.shape[1])
        found[start : start + len(some)] = some
        start += len(some)
    return found
