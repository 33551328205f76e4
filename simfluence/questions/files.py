"""Answers about many edits as tables people read: printed, and as files of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from simfluence.evaluation.tables import write_table
from simfluence.html_report import About, Section, write_report

_TEXT = 70
"""Longer texts are cut."""


def readable(frame: pd.DataFrame, texts: dict[str, str] | None = None) -> pd.DataFrame:
    """A frame of changes with signs and rounded numbers, each band as one cell, and the examples' texts.

    texts : id → text; they are left out where the frame has no ids or all texts are empty.
    """
    shown = pd.DataFrame(index=frame.index)
    for name in frame.columns:
        if name == "low":
            shown["band"] = [
                f"{low:+.2g} … {high:+.2g}" for low, high in zip(frame["low"], frame["high"], strict=True)
            ]
        elif name != "high":
            numbers = pd.api.types.is_float_dtype(frame[name])
            write = "{:g}" if name == "uses" else "{:+.3g}"
            shown[name] = frame[name].map(write.format) if numbers else frame[name]
    if "id" in frame and texts and any(texts[name] for name in frame["id"]):
        shown["text"] = [_cut(texts[name]) for name in frame["id"]]
    return shown


def largest(frame: pd.DataFrame, top: int, column: str = "change") -> pd.DataFrame:
    """The ``top`` rows whose values are furthest from zero, in the order of the frame."""
    return frame.loc[frame[column].abs().nlargest(top).index.sort_values()]


def write_answer(
    frame: pd.DataFrame,
    shown: pd.DataFrame,
    figure: Figure,
    folder: str | Path,
    name: str,
    about: About,
    notes: Sequence[str] = (),
) -> None:
    """report.html, NAME.csv (the whole frame), NAME.md and NAME.tex (what is shown, and notes), NAME.png and
    NAME.pdf.
    """
    folder = Path(folder)
    write_table(shown.set_index(shown.columns[0]), folder, name, about.question, *notes)
    sections = [Section("", figure=figure, table=shown.reset_index(drop=True))]
    write_report(folder, name.replace("_", " ").capitalize(), about, sections, notes=notes)
    frame.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.savefig(folder / f"{name}.pdf")


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _TEXT else words[: _TEXT - 1] + "…"
