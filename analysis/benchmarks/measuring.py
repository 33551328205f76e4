"""Seconds and memory of what runs in this process, and tables of them."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import psutil


class Measured:
    """Seconds and the most memory beyond what there was at the start (MB), of a ``with`` block."""

    def __enter__(self) -> Measured:
        gc.collect()
        self._process, self._on = psutil.Process(), True
        self._before = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._start = time.perf_counter(), time.process_time()
        return self

    def _watch(self) -> None:
        while self._on:
            self._most = max(self._most, self._process.memory_info().rss)
            time.sleep(0.05)

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = (
            time.perf_counter() - self._start[0],
            time.process_time() - self._start[1],
        )
        self._on = False
        self._thread.join()
        self.memory = (self._most - self._before) / 1e6


def measured(task: Callable[[], Any]) -> tuple[Any, Measured]:
    with Measured() as found:
        result = task()
    return result, found


class Table:
    """Rows of seconds, of which some are the unit: the machine may be shared, so that it is measured between
    the others, and its median taken."""

    def __init__(self, what: str, unit: Callable[[], Any]) -> None:
        self.what, self._unit = what, unit
        self._units: list[Measured] = []
        self._rows: list[tuple[str, float, float, float, str]] = []
        unit()
        self.unit()

    def unit(self) -> None:
        self._units.append(measured(self._unit)[1])

    def add(self, what: str, *found: Measured, note: str = "") -> float:
        """Seconds; of several, the sum."""
        wall, cpu = sum(f.wall for f in found), sum(f.cpu for f in found)
        self._rows.append((what, wall, cpu, max(f.memory for f in found), note))
        print(self._rows[-1], flush=True)
        return wall

    def frame(self) -> pd.DataFrame:
        base = sorted(self._units, key=lambda found: found.wall)[len(self._units) // 2]
        first = (self.what, base.wall, base.cpu, base.memory, f"median of {len(self._units)}")
        return pd.DataFrame(
            {
                "what": what,
                "seconds": wall,
                "passes": wall / base.wall,
                "passes by CPU time": cpu / base.cpu,
                "memory MB": memory,
                "note": note,
            }
            for what, wall, cpu, memory, note in (first, *self._rows)
        )
