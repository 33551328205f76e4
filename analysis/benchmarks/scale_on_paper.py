"""On paper: what a model of a billion parameters would take, from what scale.py measured.

A pass takes 6 operations a parameter and token. Stages that take the model are counted in passes, those that
do not in seconds of one core an example, both as measured at the largest size.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from simfluence.attribution.adam import SUMMED_NUMBERS

PARAMETERS, EXAMPLES, TOKENS, TESTS = 1e9, 1e5, 512, 100
SPEED = 0.4 * 989e12
"""Operations a second of one H100 in bfloat16, at 40 % of what its data sheet says."""
BANDWIDTH = 3.35e12
"""Bytes a second of its memory."""
PRICE = 2.5
"""Dollars an hour of one H100; an assumption."""
K, WIDTH, LANDMARKS, SIZED, SHARD, BATCH = 4096, 2**16, 1024, 2048, 512, 8
"""The store's numbers a gradient, its first sketch, and examples for its basis, Adam's sizes, a shard, a
batch."""
LARGEST = 1.3e8
"""Numbers of the largest parameter: a vocabulary of 64 000 by 2048."""
TOUCHED = 5
"""How often every number of a gradient is read or written while it is sketched, in float32."""


def traced(n: float) -> float:
    """The gradients of single examples that writing a store takes."""
    return n + min(n, SIZED)


def estimate(record: float, store: float, seconds: Mapping[str, float]) -> pd.DataFrame:
    """Hours, gigabytes and dollars of every stage on one GPU and on eight.

    record : passes beside training itself. store : passes that a gradient of a single example takes, times
    the number of examples. seconds : of one core and one training example, of the stages without a model.
    """
    example = 6 * PARAMETERS * TOKENS / SPEED / 3600
    one = store * example * traced(EXAMPLES)
    eight = store * example * ((EXAMPLES - LANDMARKS + SIZED) / 8 + LANDMARKS)  # one makes the basis
    sketching = 4 * TOUCHED * PARAMETERS * EXAMPLES / BANDWIDTH / 3600
    rows = [
        _row("training itself, one epoch", example * EXAMPLES, example * EXAMPLES / 8),
        _row("recording, beside it", record * example * EXAMPLES, record * example * EXAMPLES / 8),
        _row("store", one, eight, stored()),
        _row("of this, if sketches wait for the GPU's memory", sketching, sketching / 8),
        _row("scores of 100 tests", example * TESTS, example * TESTS, 4 * EXAMPLES * TESTS / 1e9),
    ]
    for stage, each in seconds.items():
        rows.append(_row(f"{stage}, one core", each * EXAMPLES / 3600, each * EXAMPLES / 3600, gpus=0))
    return pd.DataFrame(rows)


def _row(stage: str, one: float, eight: float, disk: float = 0.0, gpus: int = 1) -> dict[str, object]:
    return {
        "stage": stage,
        "hours, 1 GPU": one,
        "hours, 8 GPUs": eight,
        "dollars, 1 GPU": gpus * PRICE * one,
        "dollars, 8 GPUs": gpus * PRICE * 8 * eight,
        "disk GB": disk,
    }


def stored() -> float:
    """Gigabytes of a store on disk: gradients in float16, sizes and the landmarks' basis in float32."""
    return (2 * EXAMPLES * K + 4 * PARAMETERS + 4 * WIDTH * LANDMARKS) / 1e9


def memory() -> dict[str, float]:
    """Gigabytes beside the model in the two parts of writing a store, as `simfluence gradients` says it."""
    together = min(BATCH, max(1, SUMMED_NUMBERS // LARGEST))
    return {
        "Adam's sizes": (8 * PARAMETERS + 8 * together * LARGEST) / 1e9,
        "gradients": (8 * PARAMETERS + 4 * WIDTH * LANDMARKS + 20 * SHARD * K) / 1e9,
    }
