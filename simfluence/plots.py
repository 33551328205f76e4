"""Figures from arrays and frames. Each function returns a matplotlib figure; nothing is shown or saved."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from simfluence.attribution import InfluenceScores
from simfluence.evaluation import Benchmark, Evaluation, summary
from simfluence.runs import Run

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


LEAST_SKILL_SHOWN = -1.0
"""Points below are left out of figures, so that one rollout that blows up does not hide the rest."""


def colours(methods: list[str]) -> dict[str, str]:
    """The same colour for a method in every figure; the baselines are grey."""
    plain = [method for method in methods if method not in ("persistence", "mean_trajectory")]
    chosen = {method: _COLOURS[i % len(_COLOURS)] for i, method in enumerate(plain)}
    return {"persistence": "#BBBBBB", "mean_trajectory": "#777777", **chosen}


def loss_curves(evaluation: Evaluation, *, tests: int = 6, run: int = 0) -> Figure:
    """True against simulated losses of one held-out run, for the test examples that changed most in it."""
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
    figure.supxlabel("step")
    figure.supylabel("loss")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def recorded_losses(run: Run) -> Figure:
    """Every test example's recorded losses, and their mean; where a run that is not complete ended."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(run.evaluated, run.loss, color="#BBBBBB", lw=0.6)
    axis.plot(run.evaluated, np.nanmean(run.loss, axis=1), color="black", lw=1.6, label="mean")
    if run.status != "complete":
        axis.axvline(len(run), color=_COLOURS[1], lw=1, ls="--", label=run.status)
    axis.set(xlabel="step", ylabel="loss", title=run.id)
    axis.legend(fontsize=8, frameon=False)
    return figure


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
    axis.set(xlabel="step", ylabel="mean squared error", yscale="log")
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


def predicted_changes(changes: pd.DataFrame) -> Figure:
    """A what-if's predicted changes of the final losses, with their bands; against those of retraining, if
    there are any.
    """
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axis = figure.subplots()
    if "true_change" not in changes:
        ordered = changes.sort_values("change")
        axis.barh(
            np.arange(len(ordered)),
            ordered["change"],
            xerr=_reach(ordered),
            color=_COLOURS[0],
            ecolor="#888888",
        )
        axis.set(xlabel="predicted change of the final loss", ylabel="test example", yticks=[])
        return figure
    axis.axline((0, 0), slope=1, color="#BBBBBB", lw=1)
    for number, (group, rows) in enumerate(changes.groupby("group")):
        colour = _COLOURS[number % len(_COLOURS)]
        axis.errorbar(
            rows["change"],
            rows["true_change"],
            xerr=_reach(rows),
            fmt="o",
            markersize=4,
            elinewidth=0.6,
            color=colour,
            label=group or None,
        )
    axis.set(xlabel="predicted change of the final loss", ylabel="change after retraining")
    if len(set(changes["group"])) > 1:
        axis.legend(fontsize=8, frameon=False)
    return figure


def _reach(changes: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """How far bands reach below and above the predicted changes, [2, test]; None without bands."""
    if "low" not in changes:
        return None
    edges = changes["change"] - changes["low"], changes["high"] - changes["change"]
    return np.stack([np.maximum(edge, 0) for edge in edges])


def influence_tails(scores: InfluenceScores, fitted: pd.DataFrame) -> Figure:
    """How many training examples have at least a given positive score, a line a test example; both axes
    logarithmic, so that a power law is straight. ``fitted`` is what :func:`.sparsity.sparsity` found."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    for column in scores.scores.T:
        positive = np.sort(column[column > 0])[::-1]
        if len(positive):
            share = np.arange(1, len(positive) + 1) / len(column)
            axis.plot(positive / positive[0], share, color="#BBBBBB", lw=0.7)
    alpha = float(fitted["alpha"].median())
    title = f"{scores.method}: the top 1% hold {fitted['share'].mean():.0%} of the positive influence"
    if np.isfinite(alpha):
        title += f"; tail exponent {alpha:.1f} (median)"
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="score relative to the largest",
        ylabel="share of training examples",
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
