"""The benchmark's own results, to put those of a method of one's own beside."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

_FILE = Path(__file__).with_name("results.csv")


def get_results(set: str | None = None, method: str | None = None) -> pd.DataFrame:
    """How every method did on the benchmark's run sets (runs/paper; analysis/results/paper has the tables).

    Parameters
    ----------
    set, method : only of this run set ("copa-ia3"), of this method ("linear").

    Returns
    -------
    One row a set, method and metric: set, method, metric, mean, spread and n, as :func:`.tables.summary` has
    them, so that a summary of one's own can be appended.

    Raises
    ------
    ValueError : there is no such set or method.
    """
    frame = pd.read_csv(_FILE)
    for column, wanted in (("set", set), ("method", method)):
        if wanted is not None:
            if wanted not in frame[column].unique():
                there = ", ".join(frame[column].unique())
                raise ValueError(f"there is no {column} {wanted!r}; there are {there}")
            frame = frame[frame[column] == wanted]
    return frame.reset_index(drop=True)
