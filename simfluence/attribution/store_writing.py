"""Writing a store of gradients: a pass over the training examples, and one before it, over some of them, for
Adam's sizes.

Several processes share the work: process j of p takes every p-th shard, from shard j − 1 on. A process that
is killed and started again goes on after the last shard that it wrote; of the pass for the sizes it loses a
minute at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import simfluence
from simfluence.attribution.batch_size import longest
from simfluence.attribution.ekfac.scores import UNITS
from simfluence.attribution.freed_memory import give_back
from simfluence.attribution.gradient_step import step_settings
from simfluence.attribution.landmarks import Projection
from simfluence.attribution.parameters import share_of_trained
from simfluence.attribution.registry import AttributionContext
from simfluence.attribution.sketch import Sketch
from simfluence.attribution.store_cost import expected_cost, found_batch_size
from simfluence.attribution.store_files import Manifest, check_belongs, shard_file, tidy, write_shard
from simfluence.attribution.store_projection import make_basis, read_projection
from simfluence.attribution.store_sizes import Work, make_scales
from simfluence.attribution.store_whitening import make_factors, sketched_arrays
from simfluence.attribution.tracing import Tracer, tracer
from simfluence.recording.fingerprint import weights_fingerprint

_SHARD_BYTES = 2**28
_SHARD_ROWS = 512
_SIZED = 2048
"""Adam's sizes are taken from so many examples, where no number is asked for."""
_WIDTH = 2**16
"""Numbers of wide sketches, at least."""
_LANDMARKS = 1024
"""At most so many, where no number is asked for: the basis takes 256 MB then."""


def write_store(
    context: AttributionContext,
    folder: str | Path,
    *,
    k: int = 4096,
    landmarks: int | None = None,
    size_examples: int | None = _SIZED,
    metric: Literal["step", "ekfac"] = "step",
    seed: int = 0,
    parameters: Sequence[str] | None = None,
    batch_size: int | None = None,
    shard_rows: int | None = None,
    share: tuple[int, int] = (1, 1),
    wait: float = 0.0,
    progress: bool = False,
) -> str:
    """Write the gradient of every training example, in the metric of the run's optimizer, projected to k
    numbers; shards that are there are left as they are. What it costs is printed first.

    The weights are those of the context's last checkpoint.

    Parameters
    ----------
    folder : of the store, which several processes may write at a time.
    landmarks : training examples whose gradients are the basis of the first of the k numbers
        (:mod:`.landmarks`); None: k/2, 1024 or all examples, whichever is least; 0: none.
    size_examples : training examples, drawn at random, that Adam's sizes are taken from; None: all. The error
        of scores falls with their number, whatever the share.
    metric : "step", of the run's optimizer; or "ekfac", whose scores are those of ``ekfac``.
    seed : of the projection, the landmarks and the examples for sizes.
    parameters : as in :func:`.parameters.selected_parameters`.
    batch_size : examples in a forward and backward pass; None: as many as fit into memory, at most 8 on a CPU
        and 128 on a GPU (:mod:`.batch_size`).
    shard_rows : examples a shard; None: 512, or fewer where these take more than 256 MB.
    share : (j, p), j from 1: which part of the work this process does.
    wait : seconds that a process waits for the sums of the others, which Adam's metric needs.

    Returns a sentence on what is there afterwards.

    Raises
    ------
    RunDataError : the folder holds a store of other weights, examples or settings.
    ValueError : as :func:`.gradient_step.gradient_step`; k, landmarks, size_examples, share or
        shard_rows out of range.
    """
    folder = Path(folder)
    if not 1 <= share[0] <= share[1]:
        raise ValueError(f"shard must be j/p with j from 1 to p, got {share[0]}/{share[1]}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows = min(_SHARD_ROWS, max(1, _SHARD_BYTES // (2 * k))) if shard_rows is None else shard_rows
    if rows < 1:
        raise ValueError(f"shard_rows must be at least 1, got {rows}")
    if metric not in ("step", "ekfac"):
        raise ValueError(f"metric must be step or ekfac, got {metric!r}")
    if size_examples is not None and size_examples < 1:
        raise ValueError(f"size_examples must be at least 1, got {size_examples}")
    checkpoint = context.checkpoints[-1]
    with (
        checkpoint.loaded(context.objective.module),
        tracer(context.objective, [*context.train[:1], *context.test[:1]], parameters) as trace,
    ):
        if metric == "ekfac":
            about, units = {"fisher": "true"}, UNITS
        else:
            about, units = _metric(context, parameters, size_examples)
        c = min(k // 2, _LANDMARKS, len(context.train)) if landmarks is None else landmarks
        if not 0 <= c < max(k, 1) or c > len(context.train):
            raise ValueError(f"landmarks must be 0 or more, fewer than k and than the examples, got {c}")
        manifest = _manifest(context, trace, k, c, seed, rows, about, units)
        manifest.keep(folder)
        work = Work(context.train, folder, manifest, trace, batch_size or 1, share, wait, progress)
        if batch_size is None:
            found = found_batch_size(work, longest(context.train, context.train_texts))
            work = replace(work, batch_size=found)
        return _write(work, len(context.test))


def _metric(
    context: AttributionContext, parameters: Sequence[str] | None, size_examples: int | None
) -> tuple[dict[str, Any], str]:
    """What the manifest says of the optimizer's step, and the units of scores."""
    of_adam, mixed, settings = step_settings(context, parameters)
    metric = {name: dict(v) if isinstance(v, dict) else v for name, v in settings.items()}
    if of_adam:
        if context.batch is None:
            raise ValueError("Adam's metric needs batch, the number of examples in a training step")
        metric["batch"] = context.batch
        if size_examples is not None and size_examples < len(context.train):
            metric["size_examples"] = size_examples
    adam = "loss / learning rate" if mixed else "loss / parameter"
    return metric, adam if of_adam else "loss² / parameter²"


def _manifest(
    context: AttributionContext,
    trace: Tracer,
    k: int,
    landmarks: int,
    seed: int,
    rows: int,
    metric: dict[str, Any],
    units: str,
) -> Manifest:
    module = context.objective.module
    if not len(context.train):
        raise ValueError("expected training examples, got none")
    width = max(_WIDTH, 4 * k) if landmarks else k
    arrays = sketched_arrays(metric, trace)
    return Manifest(
        examples=len(context.train),
        shard_rows=rows,
        k=k,
        width=width,
        landmarks=landmarks,
        seed=seed,
        parameters={name: list(p.shape) for name, p in trace.parameters.items()},
        metric=metric,
        units=units,
        weights=weights_fingerprint(module) or "",
        train=context.tables.train,
        projection=Sketch(arrays, width, seed, dict.fromkeys(arrays, 1.0)).fingerprint,
        step=context.checkpoints[-1].step,
        coverage=share_of_trained(module, trace.parameters),
        version=simfluence.__version__,
    )


def _write(work: Work, tests: int) -> str:
    """Returns a sentence on what is there. tests : test examples of the run."""
    manifest = work.manifest
    missing = [shard for shard in work.own() if not _is_there(work.folder, manifest, shard)]
    if missing:
        print(expected_cost(work, missing, tests), flush=True)
        if not make_scales(work):
            return (
                f"sums of share {work.share[0]} of {work.share[1]} are there, those of other shares are not"
                " yet: run this again when they are, or give wait= the seconds to wait for them"
            )
        make_factors(work)
        give_back()
        make_basis(work)
        project = read_projection(work.folder, manifest, work.trace)
        with work.bar("gradients", map(manifest.rows, missing)) as bar:
            for shard in missing:
                give_back()
                found = _projected(work, project, manifest.rows(shard), bar)
                write_shard(work.folder, manifest, shard, found.cpu().numpy())
    return _finished(work.folder, manifest)


def _projected(work: Work, project: Projection, rows: range, bar: tqdm[Any]) -> Tensor:
    """[example, k] of a shard's rows. Landmarks were traced before."""
    landmarks = work.manifest.drawn_landmarks()
    known = {row: i for i, row in enumerate(landmarks) if row in rows}
    others = [row for row in rows if row not in known]
    found = project.of(work.traced(others, bar)) if others else torch.empty(0)
    if not known:
        return found
    of_landmarks = project.of_landmarks()[list(known.values())]
    bar.update(len(known))
    together = torch.cat([found.to(of_landmarks), of_landmarks]) if others else of_landmarks
    return together[np.argsort([*others, *known])]


def _is_there(folder: Path, manifest: Manifest, shard: int) -> bool:
    file = shard_file(folder, shard)
    if file.exists():
        check_belongs(file, manifest)
    return file.exists()


def _finished(folder: Path, manifest: Manifest) -> str:
    """A sentence on what is there; a store that is complete is tidied."""
    there = [shard for shard in range(manifest.shards) if shard_file(folder, shard).exists()]
    if len(there) == manifest.shards:
        tidy(folder)
    examples = sum(len(manifest.rows(shard)) for shard in there)
    covered = manifest.coverage
    share = "" if covered is None else f" ({covered:.0%} of the numbers that are trained)"
    return (
        f"{folder}: gradients of {examples} of {manifest.examples} training examples in {len(there)} of"
        f" {manifest.shards} shards, {manifest.k} numbers each, of {len(manifest.parameters)}"
        f" parameters{share}"
    )
