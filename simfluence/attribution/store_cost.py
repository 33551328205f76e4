"""What writing a store of gradients costs, said before it begins: the batch that fits into memory, and the
time that it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from simfluence.attribution.adam import HELD_NUMBERS, SUMMED_NUMBERS, GradientSums
from simfluence.attribution.batch_size import fitting_batch_size
from simfluence.attribution.sketch import Sketch
from simfluence.attribution.store_files import LANDMARKS
from simfluence.attribution.store_sizes import Work, is_adams, needs_sizes
from simfluence.attribution.store_whitening import FACTORS, is_whitened


def expected_cost(work: Work, missing: Sequence[int], tests: int) -> str:
    """Passes, seconds, memory and disk, in words, of writing the shards that are missing; and how many passes
    exact scores of so many test examples take."""
    manifest, sizes, sized = work.manifest, needs_sizes(work), work.sized()
    rows = [row for shard in missing for row in manifest.rows(shard)]
    drawn = sum(len(sized[shard]) for shard in work.own())
    landmarks = 0 if (work.folder / LANDMARKS).exists() else manifest.landmarks
    known = set(manifest.drawn_landmarks())
    examples = landmarks + sum(row not in known for row in rows)
    sketched, summed = _seconds(work, sizes)
    seconds = examples * sketched + drawn * summed
    numbers = [parameter.numel() for parameter in work.trace.parameters.values()]
    together = min(work.batch_size, max(1, SUMMED_NUMBERS // max(numbers)))
    shard = 20 * min(manifest.shard_rows, manifest.examples) * manifest.k
    basis = 4 * manifest.width * manifest.landmarks
    scales = 4 * sum(numbers) if is_adams(manifest) else 0
    memory = max(
        2 * scales + 8 * together * max(numbers) if sizes else 0,
        2 * scales + basis + shard,
    )
    disk = 2 * len(rows) * manifest.k + (basis if landmarks else 0) + (scales if sizes else 0)
    more = f", one over {drawn} examples for Adam's sizes" if sizes else ""
    if is_whitened(manifest.metric) and not (work.folder / FACTORS).exists():
        more += ", two over all for EK-FAC's factors"
        seconds += 2 * manifest.examples * sketched
    of_these = f" ({landmarks} of them landmarks)" if landmarks else ""
    one = work.trace.one_by_one
    batches = "one example at a time" if one else f"batches of {work.batch_size} examples"
    return (
        f"to write: one pass over {examples} training examples{of_these}{more}; {batches}; about"
        f" {seconds:.0f} s; memory beside the model about {_megabytes(memory)}; disk {_megabytes(disk)};"
        f" exact scores of {tests} test examples, without a store, take"
        f" {_exact_passes(sum(numbers), tests, is_adams(manifest))}"
    )


def _exact_passes(numbers: int, tests: int, of_adam: bool) -> str:
    """Of ``gradient_step``; in Adam's metric it holds the gradients of some test examples at a time."""
    passes = 1 + -(-tests // max(1, HELD_NUMBERS // numbers)) if of_adam else 1
    return f"{passes} pass{'es' * (passes > 1)}"


def _seconds(work: Work, sizes: bool) -> tuple[float, float]:
    """What an example takes, of gradients that are sketched and of those that are summed up for sizes."""
    n, size = len(work.train), min(work.batch_size, len(work.train))
    batch = [work.train[i * n // size] for i in range(size)]  # from everywhere: examples differ in length
    sketch, sketched, summed = _sketch(work), 0.0, 0.0
    for _ in range(2):  # the first time, much is prepared that later batches find ready
        start = time.perf_counter()
        sketch(work.trace(batch))
        sketched = time.perf_counter() - start
    if sizes:
        sums = GradientSums()
        for _ in range(2):
            start = time.perf_counter()
            sums.add(work.trace(batch))
            summed = time.perf_counter() - start
    return sketched / len(batch), summed / len(batch)


def found_batch_size(work: Work, longest: Sequence[Any]) -> int:
    """The largest batch of the longest training examples whose gradients fit into memory."""
    sketch = _sketch(work)

    def attempt(batch: Sequence[Any]) -> None:
        sketch(work.trace(batch))
        if needs_sizes(work):
            GradientSums().add(work.trace(batch))

    return 1 if work.trace.one_by_one else fitting_batch_size(work.trace.objective, longest, attempt)


def _sketch(work: Work) -> Sketch:
    """As large as the store's, with scales that are all one."""
    parameters, manifest = work.trace.parameters, work.manifest
    scales = {name: torch.ones_like(p) if is_adams(manifest) else 1.0 for name, p in parameters.items()}
    return Sketch(parameters, manifest.width, manifest.seed, scales)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.2g} MB"
