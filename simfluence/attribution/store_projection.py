"""The projection of a store: its sketch in the optimizer's metric, and the basis of its landmarks."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from simfluence.attribution.landmarks import Projection, basis_of, drawn
from simfluence.attribution.sketch import Sketch
from simfluence.attribution.store_files import LANDMARKS, Manifest, check_belongs, write_once
from simfluence.attribution.store_sizes import Work, read_scales
from simfluence.attribution.store_whitening import WhitenedSketch, is_whitened, read_whitened
from simfluence.attribution.tracing import Tracer
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
        basis = load_file(folder / LANDMARKS)["basis"].to(next(iter(trace.parameters.values())).device)
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
        which = drawn(manifest.examples, manifest.landmarks, manifest.seed)
        basis = basis_of(torch.cat([sketch(traced) for traced in work.batches("landmarks", which)]))
        write_once(file, save({"basis": basis.cpu()}, {"store": manifest.fingerprint}))
