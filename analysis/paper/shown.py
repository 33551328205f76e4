"""How the studies of this folder print tables, save figures and give intervals: the same bytes every time."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from protocol import RESULTS

mpl.use("Agg")
from matplotlib.figure import Figure

DATA = RESULTS / "data"
"""What was measured; tables and figures are made of it."""

DRAWS = 2000
"""Bootstrap samples."""


def interval(values: npt.ArrayLike, *, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """The mean over units, and a percentile bootstrap interval over them.

    values : [unit]; those that are NaN are left out. NaN throughout if none are left.
    """
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    if not len(array):
        return (np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (DRAWS, len(array)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(array.mean()), float(low), float(high)


def printed(values: npt.ArrayLike, digits: int = 2) -> str:
    """ "mean [low, high]" of :func:`interval`, or "none" where there is nothing."""
    mean, low, high = interval(values)
    return "none" if np.isnan(mean) else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def save_figure(figure: Figure, name: str) -> None:
    """NAME.png and NAME.pdf, without dates."""
    figure.savefig(RESULTS / f"{name}.png", dpi=150, metadata={"Software": None})
    figure.savefig(RESULTS / f"{name}.pdf", metadata={"CreationDate": None})


def save_tables(name: str, command: str, text: str, tables: Sequence[tuple[str, pd.DataFrame]]) -> None:
    """NAME.csv of the first table; NAME.md of all of them, each under its caption, after the text."""
    tables[0][1].to_csv(RESULTS / f"{name}.csv", index=False)
    parts = [
        f"{caption}\n\n{frame.to_markdown(index=False, disable_numparse=True)}" for caption, frame in tables
    ]
    head = f"Measured by `{command}`; made of the files in data/ by `python analysis/paper/{name}.py`."
    (RESULTS / f"{name}.md").write_text("\n\n".join([head, text.strip(), *parts]) + "\n", encoding="utf-8")
