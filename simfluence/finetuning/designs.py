"""How the curricula of a set of runs are drawn.

To add a design: a function (n examples, their groups, generator, options) → batches of row numbers, and
a line in ``DESIGNS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from simfluence.curriculum import Curriculum, IntArray


def random_subset(
    groups: list[str], rng: np.random.Generator, *, size: int, epochs: int, batch_size: int
) -> IntArray:
    """A random subset in a new random order every epoch (the published protocol)."""
    if not 1 <= size <= len(groups):
        raise ValueError(f"a subset of {len(groups)} examples has 1 .. {len(groups)}, got size {size}")
    chosen = rng.choice(len(groups), size, replace=False)
    return np.concatenate([rng.permutation(chosen) for _ in range(epochs)])


def everything(groups: list[str], rng: np.random.Generator, *, epochs: int, batch_size: int) -> IntArray:
    """All examples, in a new random order every epoch: runs differ in order alone."""
    return random_subset(groups, rng, size=len(groups), epochs=epochs, batch_size=batch_size)


DESIGNS: dict[str, Callable[..., IntArray]] = {"random_subset": random_subset, "everything": everything}


def draw_curriculum(
    name: str, groups: list[str], seed: int, *, batch_size: int, **options: Any
) -> Curriculum:
    """The curriculum that a design and a seed give over a training table with these groups.

    The stream of examples is cut into batches; what is left over at the end is dropped.
    """
    if name not in DESIGNS:
        raise ValueError(f"no design is named {name!r}; there are {', '.join(DESIGNS)}")
    stream = DESIGNS[name](groups, np.random.default_rng(seed), batch_size=batch_size, **options)
    steps = len(stream) // batch_size
    if steps == 0:
        raise ValueError(f"{len(stream)} examples do not fill a batch of {batch_size}")
    return Curriculum.from_batches(stream[: steps * batch_size].reshape(steps, batch_size), len(groups))
