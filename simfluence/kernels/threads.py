"""What compiled loops are given: threads (as many as torch uses), pieces of the work, entries in fours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

SIMD_WIDTH = 16  # numbers that compiled loops take at once (simulators/simd.py)

Task = TypeVar("Task")


def in_threads(work: Callable[[Task], Any], tasks: Sequence[Task]) -> Iterable[Any]:
    """``work`` on every task; what it returns, in order."""
    threads = min(torch.get_num_threads(), len(tasks))
    return map(work, tasks) if threads <= 1 else _pooled(work, tasks, threads)


def _pooled(work: Callable[[Task], Any], tasks: Sequence[Task], threads: int) -> Iterable[Any]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, tasks)


def slices(length: int, size: int) -> list[slice]:
    """0 .. length cut into slices of at most ``size`` (at least 1)."""
    edges = [*range(0, length, max(size, 1)), length]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def padded_to_fours(
    values: npt.NDArray[Any], sizes: npt.NDArray[np.int64], filler: float
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Ragged rows of these sizes, each filled up to a multiple of four; and where they begin, and the end."""
    bounds = np.concatenate([[0], np.cumsum((sizes + 3) & -4)])
    if bounds[-1] == len(values):
        return values, bounds
    filled = np.full(bounds[-1], filler, values.dtype)
    shift = bounds[:-1] - np.concatenate([[0], np.cumsum(sizes)[:-1]])
    filled[np.arange(len(values)) + np.repeat(shift, sizes)] = values
    return filled, bounds
