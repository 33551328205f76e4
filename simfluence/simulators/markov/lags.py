"""Losses of several steps before, for models whose order is above 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simfluence.errors import RunDataError
from simfluence.runs import RunSet, Transitions
from simfluence.simulators.base import Array


def earlier_losses(runs: RunSet, rows: Transitions, order: int) -> tuple[Transitions, list[Array]]:
    """The rows of ``runs`` with L_{t-2}, …, L_{t-order}, each [row, test]; before L_0 all are L_0.

    Where one of them is unknown the row counts as not observed, and all are 0.

    Raises RunDataError if losses were not recorded at every step.
    """
    if order == 1:
        return rows, []
    if some := [run.id for run in runs if not run.every_step]:
        raise RunDataError(
            f"order {order} needs the losses of every step, but {len(some)} of {len(runs)} runs,"
            f" {some[0]!r} the first, were not evaluated at each; leave them out, or take order=1"
        )
    number, start = np.arange(len(rows.run)), np.searchsorted(rows.run, rows.run)
    places = [np.maximum(number - back, start) for back in range(1, order)]
    # a row before is not observed too if its later loss is unknown, but that is among this row's own
    observed = np.logical_and.reduce([rows.observed, *(rows.observed[place] for place in places)])
    kept = replace(
        rows, previous=rows.previous * observed, current=rows.current * observed, observed=observed
    )
    return kept, [rows.previous[place] * observed for place in places]
