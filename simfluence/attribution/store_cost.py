"""What writing a store of gradients costs, said before it begins: from the time of one batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from simfluence.attribution.adam import GradientSums
from simfluence.attribution.sketch import Sketch
from simfluence.attribution.store_files import Manifest
from simfluence.attribution.tracing import Tracer


def expected_cost(trace: Tracer, batch: Sequence[Any], examples: int, manifest: Manifest, sizes: bool) -> str:
    """Passes, seconds, memory and disk, in words.

    batch : a few of the examples, which are timed. examples : whose gradients are to be written. sizes :
    whether a pass for Adam's sizes comes first.
    """
    numbers = sum(parameter.numel() for parameter in trace.parameters.values())
    largest = max(parameter.numel() for parameter in trace.parameters.values())
    of_adam = "eps" in manifest.metric
    scales = {name: torch.ones_like(p) if of_adam else 1.0 for name, p in trace.parameters.items()}
    sketch = Sketch(trace.parameters, manifest.width, manifest.seed, scales)
    for _ in range(2):  # the first time, much is prepared that later batches find ready
        start = time.perf_counter()
        sketch(trace(batch))
        seconds = time.perf_counter() - start
    if sizes:
        start = time.perf_counter()
        GradientSums().add(trace(batch))
        seconds += time.perf_counter() - start
    passes = "2 passes (Adam's sizes, then gradients)" if sizes else "1 pass"
    shard = min(manifest.shard_rows, manifest.examples) * manifest.k * 20
    memory = (8 * numbers + 8 * len(batch) * largest if sizes else 4 * numbers * of_adam) + shard
    disk = 2 * examples * manifest.k + 4 * numbers * of_adam
    return (
        f"to write: {passes} over {examples} training examples, about {seconds * examples / len(batch):.0f} s;"
        f" memory beside the model about {_megabytes(memory)}; disk {_megabytes(disk)}"
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.2g} MB"
