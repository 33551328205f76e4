"""Work in several threads, as many as torch uses. Compiled functions release the interpreter's lock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

SIMD_WIDTH = 16  # how many numbers compiled loops take at once (kernels/simd.py)

Task = TypeVar("Task")


def torch_threads() -> int:
    """How many threads torch uses."""
    import torch  # takes a second, and many never get here

    return torch.get_num_threads()


def in_threads(work: Callable[[Task], Any], tasks: Sequence[Task]) -> Iterator[Any]:
    """``work`` on every task; what it returns, in order."""
    threads = min(torch_threads(), len(tasks))
    if threads <= 1:
        yield from map(work, tasks)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(work, tasks)


def slices(length: int, size: int) -> list[slice]:
    """0 .. length cut into slices of at most ``size`` (at least 1)."""
    edges = [*range(0, length, max(size, 1)), length]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
