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


def group_subset(
    groups: list[str], rng: np.random.Generator, *, share: float, epochs: int, batch_size: int
) -> IntArray:
    """Whole groups, a random ``share`` of them (at least one), in a new random order every epoch."""
    if not 0 < share <= 1:
        raise ValueError(f"share is a part of the groups in (0, 1], got {share}")
    rows = list(_rows_by_group(groups).values())
    kept = rng.choice(len(rows), max(1, round(share * len(rows))), replace=False)
    chosen = np.concatenate([rows[group] for group in sorted(kept)])
    return np.concatenate([rng.permutation(chosen) for _ in range(epochs)])


def group_blocks(groups: list[str], rng: np.random.Generator, *, epochs: int, batch_size: int) -> IntArray:
    """One group after the other, the groups and the examples within in new random orders every epoch."""
    rows = list(_rows_by_group(groups).values())
    return np.concatenate(
        [rng.permutation(rows[group]) for _ in range(epochs) for group in rng.permutation(len(rows))]
    )


def leave_group_out(
    groups: list[str], rng: np.random.Generator, *, number: int, epochs: int, batch_size: int
) -> IntArray:
    """All but the group of the run's number, in a new random order every epoch.

    Groups are numbered in the order of their names, and begin again after the last.
    """
    rows = _rows_by_group(groups)
    left_out = sorted(rows)[number % len(rows)]
    chosen = np.flatnonzero(np.array(groups) != left_out)
    return np.concatenate([rng.permutation(chosen) for _ in range(epochs)])


def _rows_by_group(groups: list[str]) -> dict[str, IntArray]:
    """Group → its rows, in the order in which groups first appear. ValueError if there is only one."""
    names = np.array(groups)
    rows = {group: np.flatnonzero(names == group) for group in dict.fromkeys(groups)}
    if len(rows) < 2:
        raise ValueError(
            f"a design by groups needs at least 2 groups of training examples, got {len(rows)};"
            " choose a task with groups, or the design random_subset"
        )
    return rows


DESIGNS: dict[str, Callable[..., IntArray]] = {
    "random_subset": random_subset,
    "everything": everything,
    "group_subset": group_subset,
    "group_blocks": group_blocks,
    "leave_group_out": leave_group_out,
}
NUMBERED = ("leave_group_out",)
"""Designs that take the run's number too: option ``number``, from 0."""


def pool_rows(n_examples: int, share: float) -> IntArray:
    """The rows that a pool of that share of a table consists of, ascending; the same in every run.

    Runs drawn from a pool never see the other examples. A simulator that is fitted to such runs can be tested
    on runs with examples it has not seen.
    """
    if not 0 < share <= 1:
        raise ValueError(f"pool is a share of the training examples in (0, 1], got {share}")
    order = np.random.default_rng(0).permutation(n_examples)
    return np.sort(order[: max(1, round(share * n_examples))])


def draw_curriculum(
    name: str,
    groups: list[str],
    seed: int,
    *,
    batch_size: int,
    number: int = 0,
    pool: float = 1.0,
    **options: Any,
) -> Curriculum:
    """The curriculum that a design and a seed give over a training table with these groups.

    ``number`` is the run's in its set; ``pool`` restricts the design to a share of the examples
    (``pool_rows``). The stream of examples is cut into batches; what is left over at the end is dropped.
    """
    if name not in DESIGNS:
        raise ValueError(f"no design is named {name!r}; there are {', '.join(DESIGNS)}")
    if name in NUMBERED:
        options["number"] = number
    rng = np.random.default_rng(seed)
    rows = pool_rows(len(groups), pool)
    stream = rows[DESIGNS[name]([groups[row] for row in rows], rng, batch_size=batch_size, **options)]
    steps = len(stream) // batch_size
    if steps == 0:
        raise ValueError(f"{len(stream)} examples do not fill a batch of {batch_size}")
    return Curriculum.from_batches(stream[: steps * batch_size].reshape(steps, batch_size), len(groups))
