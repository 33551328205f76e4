"""What writing a store of gradients costs, said before it begins: from the time of one batch."""

from __future__ import annotations

import time

import torch

from simfluence.attribution.adam import HELD_NUMBERS, GradientSums
from simfluence.attribution.sketch import Sketch
from simfluence.attribution.store_files import LANDMARKS
from simfluence.attribution.store_sizes import Work, is_adams, needs_sizes


def expected_cost(work: Work, examples: int, tests: int) -> str:
    """Passes, seconds, memory and disk, in words, of writing the gradients of so many training examples; and
    how many passes exact scores of so many test examples take."""
    manifest, sizes, sized = work.manifest, needs_sizes(work), work.sized()
    drawn = sum(len(sized[shard]) for shard in work.own())
    landmarks = 0 if (work.folder / LANDMARKS).exists() else manifest.landmarks
    sketched, summed = _seconds(work, sizes)
    seconds = (examples + landmarks) * sketched + drawn * summed
    numbers = [parameter.numel() for parameter in work.trace.parameters.values()]
    shard = 20 * min(manifest.shard_rows, manifest.examples) * manifest.k
    basis = 4 * manifest.width * manifest.landmarks
    scales = 4 * sum(numbers) if is_adams(manifest) else 0
    memory = max(
        2 * scales + 8 * work.batch_size * max(numbers) if sizes else 0,
        2 * scales + 3 * basis if landmarks else 0,
        2 * scales + basis + shard,
    )
    disk = 2 * examples * manifest.k + (basis if landmarks else 0) + (scales if sizes else 0)
    more = f", one over {drawn} examples for Adam's sizes" if sizes else ""
    more += f", one over {landmarks} landmarks" if landmarks else ""
    return (
        f"to write: one pass over {examples} training examples{more}; about {seconds:.0f} s; memory beside"
        f" the model about {_megabytes(memory)}; disk {_megabytes(disk)}; exact scores of {tests} test"
        f" examples, without a store, take {_exact_passes(sum(numbers), tests, is_adams(manifest))}"
    )


def _exact_passes(numbers: int, tests: int, of_adam: bool) -> str:
    """Of ``gradient_step``; in Adam's metric it holds the gradients of some test examples at a time."""
    passes = 1 + -(-tests // max(1, HELD_NUMBERS // numbers)) if of_adam else 1
    return f"{passes} pass{'es' * (passes > 1)}"


def _seconds(work: Work, sizes: bool) -> tuple[float, float]:
    """What an example takes, of gradients that are sketched and of those that are summed up for sizes."""
    parameters, manifest, n = work.trace.parameters, work.manifest, len(work.train)
    size = min(work.batch_size, n)
    batch = [work.train[i * n // size] for i in range(size)]  # from everywhere: examples differ in length
    scales = {name: torch.ones_like(p) if is_adams(manifest) else 1.0 for name, p in parameters.items()}
    sketch = Sketch(parameters, manifest.width, manifest.seed, scales)
    sketched = summed = 0.0
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


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.2g} MB"
