"""How the studies of this folder print tables, save figures and give intervals: the same bytes every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from protocol import RESULTS

mpl.use("Agg")
from matplotlib.figure import Figure

from simfluence.evaluation import to_latex

DATA = RESULTS / "data"
"""What was measured; tables and figures are made of it."""

DRAWS = 2000
"""Bootstrap samples."""


class Interval(NamedTuple):
    """A mean and its interval; as text, "mean [low, high]" with so many digits."""

    mean: float
    low: float
    high: float
    digits: int = 2

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "none"
        mean, low, high = (f"{value:.{self.digits}f}" for value in self[:3])
        return f"{mean} [{low}, {high}]"


def interval(values: npt.ArrayLike, digits: int = 2) -> Interval:
    """The mean over units, and a 95 % percentile bootstrap interval over them.

    values : [unit]; those that are NaN are left out. NaN throughout if none are left.
    """
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    if not len(array):
        return Interval(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(0)
    means = array[rng.integers(0, len(array), (DRAWS, len(array)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), digits)


def save_figure(figure: Figure, name: str) -> None:
    """NAME.png and NAME.pdf, without dates."""
    figure.savefig(RESULTS / f"{name}.png", dpi=150, metadata={"Software": None})
    figure.savefig(RESULTS / f"{name}.pdf", metadata={"CreationDate": None})


def save_tables(
    name: str,
    command: str,
    text: str,
    tables: Sequence[tuple[str, pd.DataFrame]],
    numbers: pd.DataFrame | None = None,
) -> None:
    """NAME.md of all tables, each under its caption, after the text; NAME.tex of them; NAME.csv of
    ``numbers`` (None: of the first table), where an interval takes three columns."""
    spread(tables[0][1] if numbers is None else numbers).to_csv(
        RESULTS / f"{name}.csv", index=False, float_format="%.5g"
    )
    parts = []
    for caption, frame in tables:
        shown = frame.astype(object).map(str)
        parts.append(f"{caption}\n\n{shown.to_markdown(index=False, disable_numparse=True)}")
    write_latex(name, [frame for _, frame in tables])
    head = f"Measured by `{command}`; made of the files in data/ by `python analysis/paper/{name}.py`."
    (RESULTS / f"{name}.md").write_text("\n\n".join([head, text.strip(), *parts]) + "\n", encoding="utf-8")


def write_latex(name: str, frames: Sequence[pd.DataFrame]) -> None:
    """NAME.tex: the same tables for LaTeX (of the package booktabs), their first column in front."""
    texts = [to_latex(frame.astype(object).map(str).set_index(frame.columns[0])) for frame in frames]
    (RESULTS / f"{name}.tex").write_text("\n".join(texts), encoding="utf-8")


def spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of intervals as columns of numbers: NAME, NAME low and NAME high."""
    found = {}
    for name, column in frame.items():
        if isinstance(column.iloc[0], Interval):
            for number, suffix in enumerate(("", " low", " high")):
                found[f"{name}{suffix}"] = [cell[number] for cell in column]
        else:
            found[str(name)] = list(column)
    return pd.DataFrame(found)
