"""Means with bootstrap intervals, and tables as CSV and Markdown: for limit.py and pbrf_or_retraining.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from shown import write_latex

DRAWS = 2000


def bootstrap_mean(values: npt.ArrayLike) -> tuple[float, float, float]:
    """The mean of values [test example] and its 95 % percentile interval over test examples; values that are
    not finite are left out."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return np.nan, np.nan, np.nan
    drawn = np.random.default_rng(0).integers(len(known), size=(DRAWS, len(known)))
    low, high = np.percentile(known[drawn].mean(1), [2.5, 97.5])
    return float(known.mean()), float(low), float(high)


def write_table(
    path: Path, frame: pd.DataFrame, title: str, command: str, parts: list[str | pd.DataFrame]
) -> None:
    """PATH.csv, PATH.tex (the tables) and PATH.md: a title, texts and tables in order, and the command."""
    frame.to_csv(path.with_suffix(".csv"), index=False)
    shown = [part if isinstance(part, str) else part.to_markdown(index=False) for part in parts]
    write_latex(path.stem, [part for part in parts if not isinstance(part, str)])
    text = "\n\n".join([f"# {title}", *shown, f"Measured by `{command}`, then `{command.split(' --')[0]}`."])
    path.with_suffix(".md").write_text(f"{text}\n")
