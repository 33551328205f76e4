"""Figures of answers about many edits. Each function returns a matplotlib figure; nothing is saved."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
OTHER = "#999999"
"""Groups beyond the number of colours."""

CHANGE = "predicted change of the mean final loss"


def ranked(frame: pd.DataFrame, title: str, top: int = 10) -> Figure:
    """The first and the last rows of one set of :func:`.rank.rank`, with their bands, coloured by group."""
    shown = ends(frame, top).iloc[::-1]
    names = shown["id"] if "id" in shown else shown["group"]
    groups = list(dict.fromkeys(frame["group"]))
    colour = {group: COLOURS[i] if i < len(COLOURS) else OTHER for i, group in enumerate(groups)}
    figure = Figure(figsize=(7.2, 1.3 + 0.22 * len(shown)), layout="constrained")
    axis = figure.subplots()
    at = np.arange(len(shown), dtype=float)
    if len(frame) > len(shown):
        at[len(shown) // 2 :] += 1  # a gap where others are left out
    axis.barh(
        at, shown["change"], xerr=_reach(shown), color=[colour[g] for g in shown["group"]], ecolor="#555555"
    )
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(at, [_plain(name) for name in names], fontsize=7)
    axis.set_xlabel(CHANGE)
    axis.set_title(title, fontsize=9)
    if "id" in shown and len(groups) > 1:
        seen = [group for group in groups[: len(COLOURS)] if group in set(shown["group"])]
        handles = [Patch(color=colour[group]) for group in seen]
        labels = [_plain(group) or "no group" for group in seen]
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


def ends(frame: pd.DataFrame, top: int) -> pd.DataFrame:
    """The first and the last ``top`` rows; all, where there are no more."""
    return frame if len(frame) <= 2 * top else pd.concat([frame.iloc[:top], frame.iloc[-top:]])


def matrices(
    panels: dict[str, pd.DataFrame],
    title: str,
    unsure: dict[str, pd.DataFrame] | None = None,
    label: str = CHANGE,
) -> Figure:
    """Heat maps of changes side by side, training groups by test groups, each with a colour scale of its own.

    panels : title of the panel → [group, test]. unsure : bool of the same shapes, whose numbers are grey.
    label : of the colours.
    """
    rows, columns = next(iter(panels.values())).shape
    width, height = 2 + min(0.75 * columns, 7), 1.8 + min(0.34 * rows, 6)
    few = max(rows, columns) <= 25
    slanted = {"rotation": 45 if few else 90, "ha": "right" if few else "center"}
    size = 7 if few else 4
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        largest = float(np.nanmax(np.abs(values.to_numpy()), initial=0.0)) or 1.0
        image = axis.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        grey = unsure[name].to_numpy() if unsure else np.zeros(values.shape, bool)
        _write_cells(axis, values.to_numpy(), grey, largest)
        axis.set_xticks(range(values.shape[1]), map(_plain, values.columns), fontsize=size, **slanted)
        axis.set_yticks(range(values.shape[0]), map(_plain, values.index), fontsize=size)
        axis.set_title(name, fontsize=9)
        axis.set(xlabel=values.columns.name, ylabel=values.index.name)
        figure.colorbar(image, ax=axis, label=label).ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def placed(frame: pd.DataFrame, title: str) -> Figure:
    """Changes with their bands by place in training, a line a group of one set of :func:`.when.when`; of many
    groups, those with the largest changes.
    """
    places = list(dict.fromkeys(frame["place"]))
    spread = frame.groupby("group", sort=False)["change"].agg(lambda changes: changes.abs().max())
    groups = list(spread.index[spread.isin(spread.nlargest(len(COLOURS)))])
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="black", lw=0.8)
    for number, group in enumerate(groups):
        rows = frame[frame["group"] == group]
        at = np.arange(len(places)) + 0.05 * (number - (len(groups) - 1) / 2)
        colour = COLOURS[number % len(COLOURS)]
        label = _plain(group) or "no group"
        axis.errorbar(
            at,
            rows["change"],
            _reach(rows),
            marker="o",
            ms=4,
            lw=1.2,
            elinewidth=0.6,
            color=colour,
            label=label,
        )
    axis.set_xticks(range(len(places)), places)
    axis.set(xlabel="third of the training that the group's uses are moved to", ylabel=CHANGE)
    if len(groups) < len(spread):
        title += f"\n(the {len(groups)} groups that change most)"
    axis.set_title(title, fontsize=9)
    figure.legend(loc="outside right center", fontsize=7, frameon=False)
    return figure


def _write_cells(
    axis: Axes, values: npt.NDArray[np.float64], grey: npt.NDArray[np.bool_], largest: float
) -> None:
    """The number in every cell of a heat map that is not too large."""
    if values.size > 400:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = abs(value) > 0.6 * largest
            colour = "white" if dark else "#888888" if grey[row, column] else "black"
            axis.text(column, row, f"{value:+.2g}", ha="center", va="center", fontsize=6, color=colour)


def _reach(frame: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """How far bands reach below and above the changes, [2, row]; None without bands."""
    if "low" not in frame:
        return None
    edges = frame["change"] - frame["low"], frame["high"] - frame["change"]
    return np.stack([np.maximum(edge, 0) for edge in edges])


def _plain(name: object) -> str:
    """A name as matplotlib writes it, without mathematics, cut to what fits."""
    text = str(name).replace("$", r"\$")
    return text if len(text) <= 32 else text[:31] + "…"
