"""Figures from arrays and frames. Each function returns a matplotlib figure; ``save`` writes one to files.

Colours are those of Okabe and Ito (2008), which people who see fewer colours tell apart as well.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simfluence.answer import WhatIf
from simfluence.attribution import InfluenceScores
from simfluence.evaluation import Benchmark, Evaluation, summary
from simfluence.runs import Run

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


LEAST_SKILL_SHOWN = -1.0
"""Points below are left out of figures, so that one rollout that blows up does not hide the rest."""


LEAST_SCORE_SHOWN = 1e-4
"""Smaller scores, beside the largest one, are drawn as this."""
MOST_GROUPS = len(_COLOURS) - 1
"""Where there are more groups, the smaller ones are shown as one, in grey."""
MOST_NAMED = 40
"""Where there are more test examples, they are not named, and a ribbon takes the place of their bands."""


def save(figure: Figure, folder: str | Path, name: str) -> None:
    """Write a figure to name.png and name.pdf of a folder; the same figure is the same bytes every time."""
    figure.savefig(Path(folder) / f"{name}.png", dpi=120)
    figure.savefig(Path(folder) / f"{name}.pdf", metadata={"CreationDate": None})


def colours(methods: list[str]) -> dict[str, str]:
    """The same colour for a method in every figure; the baselines are grey."""
    plain = [method for method in methods if method not in ("persistence", "mean_trajectory")]
    chosen = {method: _COLOURS[i % len(_COLOURS)] for i, method in enumerate(plain)}
    return {"persistence": "#BBBBBB", "mean_trajectory": "#777777", **chosen}


def shown_groups(groups: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The group that every test example is shown in, and the colour of each; the smallest of many groups are
    shown as "other groups", and a test example without a group as "test examples".
    """
    named = pd.Series([str(group) or "test examples" for group in groups])
    sizes = named.value_counts(sort=False).sort_values(ascending=False, kind="stable")
    own = list(sizes.index) if len(sizes) <= MOST_GROUPS else list(sizes.index[: MOST_GROUPS - 1])
    colour = {group: _COLOURS[number] for number, group in enumerate(own)}
    shown = [group if group in colour else "other groups" for group in named]
    return shown, colour | ({"other groups": _COLOURS[-1]} if len(own) < len(sizes) else {})


def loss_curves(evaluation: Evaluation, *, tests: int = 6, run: int = 0) -> Figure:
    """Recorded and simulated losses of one held-out run, for the test examples that changed most in it."""
    runs, true = evaluation.runs, evaluation.runs.loss[run]
    spread = np.nanstd(true, axis=0)
    chosen = np.argsort(-spread)[:tests]
    colour = colours(list(evaluation.simulated))
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, squeeze=False)).ravel()
    for axis, z in zip(axes, chosen, strict=False):
        for method, losses in evaluation.simulated.items():
            if method != "persistence":
                axis.plot(losses[run, :, z], color=colour[method], lw=1.2, label=method)
        axis.plot(true[:, z], color="black", lw=1.6, label="recorded")
        axis.set_title(runs.test.ids[z], fontsize=9)
        low, high = np.nanmin(true[:, z]), np.nanmax(true[:, z])
        margin = 0.6 * (high - low) + 1e-9
        axis.set_ylim(low - margin, high + margin)  # a rollout that blows up must not hide the rest
    for axis in axes[len(chosen) :]:
        axis.remove()
    figure.supxlabel("optimizer step")
    figure.supylabel("loss of the test example")
    handles, labels = axes[0].get_legend_handles_labels()
    _title_and_legend(figure, f"{runs.runs[run].id}: recorded and simulated losses", handles, labels)
    return figure


def _title_and_legend(figure: Figure, title: str, handles: list[Artist], labels: list[str]) -> None:
    """Above all panels, where neither covers the other."""
    columns = min(len(labels), 6)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=8, frameon=False,
                  title=title, title_fontsize=11)  # fmt: skip


def recorded_losses(run: Run, groups: Sequence[str] | None = None) -> Figure:
    """The mean recorded loss of every group of test examples and of all, and the range that holds the middle
    80 % of them; where a run that is not complete ended.

    groups : of the test examples, [test]; None for one group.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    # where test examples are evaluated in turn, a mean is over the same ones at every step
    known = pd.DataFrame(run.loss, index=run.evaluated).interpolate("index", limit_area="inside")
    _draw_mean_curves(axis, run.evaluated, known.to_numpy(), groups or [""] * run.loss.shape[1])
    if run.status != "complete":
        axis.axvline(len(run), color=_COLOURS[1], lw=1, ls="--", label=run.status)
    axis.set_title(f"{run.id}: recorded losses of {run.loss.shape[1]} test examples", fontsize=11)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _draw_mean_curves(
    axis: Axes, steps: npt.ArrayLike, losses: npt.NDArray[np.floating], groups: Sequence[str]
) -> None:
    """Means over groups and over all of losses [step, test], in front of the 10 to 90 % range of all."""
    shown, colour = shown_groups(groups)
    if losses.shape[1] > 1:
        low, high = np.nanquantile(losses, (0.1, 0.9), axis=1)
        axis.fill_between(steps, low, high, color="#DDDDDD", lw=0, label="10 to 90 % of them")
    for group in colour if len(colour) > 1 else ():
        of = np.array([name == group for name in shown])
        label = f"{group} ({of.sum()})"
        axis.plot(steps, np.nanmean(losses[:, of], axis=1), color=colour[group], lw=1.4, label=label)
    axis.plot(steps, np.nanmean(losses, axis=1), color="black", lw=1.8, label="mean of all")
    axis.set(xlabel="optimizer step", ylabel="test loss")


def error_by_step(evaluation: Evaluation) -> Figure:
    """Mean squared error of every method against the step, over held-out runs and test examples."""
    true = evaluation.runs.loss
    colour = colours(list(evaluation.simulated))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    for method, losses in evaluation.simulated.items():
        with np.errstate(over="ignore", invalid="ignore"):
            errors = np.nanmean(np.square(losses - true)[:, 1:], axis=(0, 2))
        axis.plot(np.arange(1, len(errors) + 1), errors, color=colour[method], label=method)
    axis.set(xlabel="optimizer step", ylabel="mean squared error of the loss", yscale="log")
    count = f"{len(true)} held-out run" + "s" * (len(true) > 1)
    axis.set_title(f"Error of simulated losses over {count}, {true.shape[2]} test examples", fontsize=11)
    axis.legend(fontsize=8, frameon=False)
    return figure


def skill_and_cost(costs: Benchmark, seconds: float) -> Figure:
    """Skill against the seconds that a fit takes, a point a simulator and what it is given; training a run
    again, which has skill 1, is the dashed line.
    """
    frame = summary(costs.of_runs)
    skill = frame[frame["metric"] == "skill"].set_index("method")
    cells = costs.of_cells.drop(index=["persistence", "mean_trajectory"], errors="ignore")
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axis = figure.subplots()
    families = [str(name).split(",")[0] for name in cells.index]
    colour = {family: _COLOURS[i % len(_COLOURS)] for i, family in enumerate(dict.fromkeys(families))}
    shown = set()
    for name, family in zip(cells.index, families, strict=True):
        mean, spread = skill.loc[name, ["mean", "spread"]]
        if not mean > LEAST_SKILL_SHOWN:
            continue
        axis.errorbar(
            cells.loc[name, "fit_seconds"],
            mean,
            yerr=spread if np.isfinite(spread) else None,
            fmt="o",
            markersize=3 + np.sqrt(cells.loc[name, "training_runs"]),
            elinewidth=0.6,
            color=colour[family],
            label=None if family in shown else family,
        )
        shown.add(family)
    if np.isfinite(seconds):
        axis.axvline(seconds, color="#BBBBBB", ls="--", lw=1, label="training one run again")
    axis.axhline(0, color="#BBBBBB", lw=0.8)
    axis.set(xscale="log", xlabel="seconds to fit", ylabel="skill on held-out runs (± standard error)")
    axis.set_title("larger points: fitted to more runs", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    return figure


def what_if_curves(answer: WhatIf) -> Figure:
    """Mean losses of every group of test examples, and of all, under the original and the edited curriculum;
    at the end of the edited one the band of the change, where there is one.
    """
    shown, colour = shown_groups(list(answer.changes["group"]))
    every = {"all": np.ones(len(shown), bool)}
    parts = every | {group: np.array([name == group for name in shown]) for group in colour}
    parts = every if len(colour) == 1 else parts
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.6 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axis, (group, of) in zip(axes, parts.items(), strict=False):
        hue = colour.get(group, "black")
        for losses, style, label in ((answer.before, "--", "original"), (answer.after, "-", "edited")):
            means = losses[:, of].mean(axis=1)
            axis.plot(means, color=hue, ls=style, lw=1.4, label=label)
        if answer.means is not None and group in answer.means.index:
            end = float(answer.changes["original"].to_numpy()[of].mean())
            low, high = (float(answer.means[edge][group]) for edge in ("low", "high"))
            last = len(answer.edited)
            axis.vlines(last, end + low, end + high, color=hue, lw=4, alpha=0.35, label="band of the end")
        axis.set_title(f"{group} ({of.sum()})", fontsize=9)
    for axis in axes[len(parts) - columns : len(parts)]:
        axis.tick_params(labelbottom=True)  # where nothing is below it
    for axis in axes[len(parts) :]:
        axis.remove()
    figure.supxlabel("optimizer step")
    figure.supylabel("test loss")
    handles, labels = axes[0].get_legend_handles_labels()
    handles = [copy.copy(handle) for handle in handles]
    for handle in handles:
        handle.set(color="#555555")
    _title_and_legend(figure, "Mean test loss under both curricula", handles, labels)
    return figure


def predicted_changes(changes: pd.DataFrame, level: float | None = None) -> Figure:
    """A what-if's predicted changes of the final losses, sorted, with their bands; after retraining against
    the true changes. level : of the bands.
    """
    shown, colour = shown_groups(list(changes["group"]))
    changes = changes.assign(group=shown).sort_values("change", kind="stable").reset_index(drop=True)
    if "true_change" in changes:
        return _against_retraining(changes, colour, level)
    named = len(changes) <= MOST_NAMED
    figure = Figure(figsize=(7, 1.4 + 0.2 * len(changes) if named else 6), layout="constrained")
    axis = figure.subplots()
    place = np.arange(len(changes))
    axis.axvline(0, color="#999999", lw=0.8)
    if not named and "low" in changes:
        axis.fill_betweenx(place, changes["low"], changes["high"], color="#DDDDDD", lw=0)
    for group, hue in colour.items():
        rows = changes[changes["group"] == group]
        reach = _reach(rows) if named else None
        options: dict[str, Any] = {"fmt": "o", "elinewidth": 2.2, "color": hue, "label": group}
        size = 4 if named else 2
        bars = axis.errorbar(rows["change"], rows.index, xerr=reach, markersize=size, **options)
        for line in bars[2]:
            line.set_alpha(0.45)
    if named:
        axis.set_yticks(place, [str(name) for name in changes["id"]], fontsize=7)
        axis.set_ylim(-0.7, len(changes) - 0.3)
    else:
        axis.set(ylabel=f"{len(changes)} test examples, sorted", yticks=[])
    axis.invert_yaxis()  # what is learnt better comes first, as in tables
    axis.set_xlabel(f"predicted change of the final loss{_of_level(changes, level)}; negative: learnt better")
    axis.set_title("Predicted change of every test example", fontsize=11)
    if len(colour) > 1:
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def _against_retraining(changes: pd.DataFrame, colour: dict[str, str], level: float | None) -> Figure:
    """Predicted against true changes, a point a test example."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    axis.axline((0, 0), slope=1, color="#999999", lw=1, label="as predicted")
    for group, hue in colour.items():
        rows = changes[changes["group"] == group]
        options: dict[str, Any] = {"fmt": "o", "markersize": 4, "elinewidth": 0.6, "color": hue}
        axis.errorbar(rows["change"], rows["true_change"], xerr=_reach(rows), label=group, **options)
    axis.set_xlabel(f"predicted change of the final loss{_of_level(changes, level)}")
    axis.set_ylabel("change after retraining")
    axis.set_title("Predicted and true change of every test example", fontsize=11)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _of_level(changes: pd.DataFrame, level: float | None) -> str:
    """What the bars of a figure are, in words."""
    if "low" not in changes:
        return ""
    return " with its band" if level is None else f" with its {level:.0%} band"


def _reach(changes: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """How far bands reach below and above the predicted changes, [2, test]; None without bands."""
    if "low" not in changes:
        return None
    edges = changes["change"] - changes["low"], changes["high"] - changes["change"]
    return np.stack([np.maximum(edge, 0) for edge in edges])


def influence_tails(scores: InfluenceScores, fitted: pd.DataFrame) -> Figure:
    """How large scores are beside the largest one, from the strongest training example to the weakest: the
    median over test examples and the range that holds the middle 80 % of them; both axes are logarithmic, so
    that a power law is straight. ``fitted`` is what :func:`.sparsity.sparsity` found.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    positive = -np.sort(-np.maximum(scores.scores, 0), axis=0)  # the largest first
    relative = positive[:, positive[0] > 0] / positive[0, positive[0] > 0]
    if relative.size:
        share = np.arange(1, len(relative) + 1) / len(relative)
        low, middle, high = np.maximum(np.quantile(relative, (0.1, 0.5, 0.9), axis=1), LEAST_SCORE_SHOWN)
        label = "10 to 90 % of the test examples"
        axis.fill_between(share, low, high, color="#56B4E9", alpha=0.35, lw=0, label=label)
        axis.plot(share, middle, color=_COLOURS[0], lw=1.6, label="median")
        axis.legend(fontsize=8, frameon=False)
    alpha = float(fitted["alpha"].median())
    title = f"{scores.method}: the top 1% hold {fitted['share'].mean():.0%} of the positive influence"
    if np.isfinite(alpha):
        title += f"; tail exponent {alpha:.1f} (median)"
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="share of training examples, the strongest first",
        ylabel="score beside the largest one (no unit)",
        ylim=(LEAST_SCORE_SHOWN, 1.3),
    )
    axis.set_title(title, fontsize=9)
    return figure


def layers_and_tokens(parts: list[pd.DataFrame]) -> Figure:
    """Heat maps of scores, layers by tokens, one below the other; red: the token's part lowers the loss."""
    longest = max(frame.shape[1] for frame in parts)
    height = sum(1.2 + 0.16 * len(frame) for frame in parts)
    figure = Figure(figsize=(min(2.5 + 0.22 * longest, 24), height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(parts), 1))
    for axis, frame in zip(axes, parts, strict=True):
        largest = float(np.abs(frame.to_numpy()).max()) or 1.0
        image = axis.imshow(frame, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        words = [str(word).replace("$", r"\$") for word in frame.columns]
        axis.set_xticks(range(len(words)), words, rotation=90, fontsize=6)
        axis.set_yticks(range(len(frame)), frame.index, fontsize=6)
        axis.set_title(f"{frame.columns.name}: {frame.to_numpy().sum():+.3g}", fontsize=9)
        figure.colorbar(image, ax=axis, fraction=0.02)
    return figure
