"""What each number of a gradient in a store is multiplied by: the metric of the run's optimizer.

    SGD     √rate of the parameter, relative to the run's (1 where all have the same)
    Adam    √(rate / (√v + ε)), v as in :mod:`.adam`; 0 where no training example has a gradient

Inner products of gradients multiplied so are those of ``gradient_step``. Adam's v takes a pass over training
examples, over all or over so many that are drawn (:meth:`Work.sized`); the processes that write a store share
its sums.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from simfluence.attribution.adam import GradientSums, metric_divisors
from simfluence.attribution.gradients import followed
from simfluence.attribution.landmarks import drawn
from simfluence.attribution.sketch import Scales
from simfluence.attribution.store_files import SCALES, Manifest, check_belongs, read_about, write_once
from simfluence.attribution.tracing import Traced, Tracer
from simfluence.errors import RunDataError
from simfluence.recording.wrappers import plain_name
from simfluence.runs.storage import write_atomically

_SAVE_EVERY = 60.0
"""Seconds after which a process saves the sums that it has."""


@dataclass(frozen=True)
class Work:
    """One process's part of writing a store: of share (j, p), the shards j − 1, j − 1 + p, ….

    train : the training examples. trace : of the model. wait : seconds to wait for other processes' sums.
    """

    train: Sequence[Any]
    folder: Path
    manifest: Manifest
    trace: Tracer
    batch_size: int
    share: tuple[int, int]
    wait: float
    progress: bool

    def own(self) -> list[int]:
        """This process's shards."""
        return list(range(self.share[0] - 1, self.manifest.shards, self.share[1]))

    def sized(self) -> list[list[int]]:
        """The training examples that Adam's sizes are taken from, shard by shard."""
        manifest = self.manifest
        count = manifest.metric.get("size_examples")
        if count is None:
            return [list(manifest.rows(shard)) for shard in range(manifest.shards)]
        found: list[list[int]] = [[] for _ in range(manifest.shards)]
        for i in drawn(manifest.examples, count, manifest.seed):
            found[i // manifest.shard_rows].append(i)
        return found

    def traced(self, which: Sequence[int], bar: tqdm[Any]) -> Iterator[Traced]:
        """The gradients of some training examples, in batches."""
        for batch in self.trace.batches([self.train[i] for i in which], self.batch_size):
            yield self.trace(batch)
            bar.update(len(batch))

    def batches(self, what: str, which: Sequence[int]) -> Iterator[Traced]:
        """The gradients of some training examples, in batches, with a bar of this name."""
        some = [self.train[i] for i in which]
        for batch in followed(self.trace.batches(some, self.batch_size), len(some), self.progress, what):
            yield self.trace(batch)

    def bar(self, what: str, parts: Iterable[Sequence[int]]) -> tqdm[Any]:
        """A bar that counts the examples of several parts."""
        total = sum(len(part) for part in parts)
        return tqdm(total=total, desc=what, disable=not self.progress, unit="example")

    def sums_file(self, process: int) -> Path:
        """What a process has added up for Adam's sizes."""
        return self.folder / f"sums-{process}-of-{self.share[1]}.safetensors"

    def sums_files(self) -> list[Path]:
        """Those of all processes that have shards."""
        return [self.sums_file(1 + j) for j in range(min(self.share[1], self.manifest.shards))]


def needs_sizes(work: Work) -> bool:
    """Whether a pass for Adam's sizes is still to be made."""
    return is_adams(work.manifest) and not (work.folder / SCALES).exists()


def is_adams(manifest: Manifest) -> bool:
    """Whether the metric is Adam's, so that there is a file of scales."""
    return "eps" in manifest.metric


def make_scales(work: Work) -> bool:
    """Take the sizes that Adam's metric needs, if they are not there yet. False if sums of other processes
    are missing after ``work.wait`` seconds."""
    if needs_sizes(work):
        _take_sums(work)
        if not _complete(work):
            return False
        if needs_sizes(work):
            _write_scales(work)
    work.sums_file(work.share[0]).unlink(missing_ok=True)
    return True


def read_scales(folder: Path, manifest: Manifest, trace: Tracer) -> Scales:
    """The scales of a store; RunDataError if their file is damaged or of another store."""
    if not is_adams(manifest):
        rates = manifest.metric.get("rates")
        every = {n: 1.0 if rates is None else rates.get(plain_name(n), 0.0) for n in trace.parameters}
        return {name: rate**0.5 for name, rate in every.items() if rate > 0}
    check_belongs(folder / SCALES, manifest)
    device = next(iter(trace.parameters.values())).device
    return dict(load_file(folder / SCALES, device=str(device)))


def _take_sums(work: Work) -> None:
    """Add up the gradients, and their squares, of this process's shards, from where it was left."""
    file = work.sums_file(work.share[0])
    sums, done = _read_sums(file, work.manifest) if file.exists() else (GradientSums(), [])
    missing = [shard for shard in work.own() if shard not in done]
    sized = work.sized()
    saved = time.monotonic()
    with work.bar("sizes", [sized[shard] for shard in missing]) as bar:
        for shard in missing:
            for traced in work.traced(sized[shard], bar):
                sums.add(traced)
                del traced  # not in memory while the next batch is traced
            done.append(shard)
            if time.monotonic() - saved > _SAVE_EVERY and shard != missing[-1]:
                _save_sums(file, work, sums, done)
                saved = time.monotonic()
    if missing or not file.exists():
        _save_sums(file, work, sums, done)


def _save_sums(file: Path, work: Work, sums: GradientSums, done: Sequence[int]) -> None:
    arrays = {f"sums:{name}": value for name, value in sums.sums.items()}
    arrays |= {f"squares:{name}": value for name, value in sums.squares.items()}
    arrays = {name: value.cpu().contiguous() for name, value in arrays.items()}
    about = {"store": work.manifest.fingerprint, "examples": str(sums.examples), "shards": json.dumps(done)}
    write_atomically(file, save(arrays, {**about, "complete": str(set(done) >= set(work.own()))}))


def _read_sums(file: Path, manifest: Manifest) -> tuple[GradientSums, list[int]]:
    """The sums, and which shards they are of."""
    check_belongs(file, manifest)
    about, sums = read_about(file), GradientSums()
    for key, value in load_file(file).items():
        kind, name = key.split(":", 1)
        (sums.sums if kind == "sums" else sums.squares)[name] = value
    sums.examples = int(about["examples"])
    return sums, list(json.loads(about["shards"]))


def _complete(work: Work) -> bool:
    """Whether the sums of all processes, or the scales, are there before the time to wait is over."""
    until = time.monotonic() + work.wait
    while True:
        complete = all(file.exists() and _is_complete(file, work) for file in work.sums_files())
        if complete or not needs_sizes(work):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(min(0.5, work.wait))


def _is_complete(file: Path, work: Work) -> bool:
    """Whether a file of sums is of all shards of its process."""
    try:
        return read_about(file).get("complete") == "True"
    except RunDataError:
        if needs_sizes(work):
            raise
        return True  # it was removed meanwhile, since the scales are there


def _write_scales(work: Work) -> None:
    metric, total = work.manifest.metric, GradientSums()
    try:
        for file in work.sums_files():
            total.join(_read_sums(file, work.manifest)[0])
    except (RunDataError, FileNotFoundError):
        if needs_sizes(work):
            raise
        return  # another process has written the scales, and removed its sums
    sizes = total.sizes(metric["batch"])
    divisors = metric_divisors(sizes, metric["eps"], metric.get("rates"))
    scales = {
        name: torch.where(sizes[name] > 0, divisor.rsqrt(), 0.0).contiguous()
        for name, divisor in divisors.items()
    }
    write_once(work.folder / SCALES, scales, work.manifest)
