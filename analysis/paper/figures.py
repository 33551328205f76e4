"""The benchmark's figures that need whole simulated curves, as .png and .pdf into analysis/results/paper/.

python analysis/paper/figures.py

error_by_step   error against the step, beside that of persistence
curves          recorded and simulated losses where ours is best, typical and worst
calibration     how often bands hold the losses of held-out runs, against what they say
rate            skill against the learning rate (COPA, last two layers)
coefficients    A and B of the linear simulator, training × test examples
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from methods import scores_of
from protocol import ROOT, RUNS, TRAIN, VALIDATION, recorded_and_scored
from shown import save_figure

from simfluence.evaluation import Evaluation, evaluate
from simfluence.runs import RunSet
from simfluence.simulators import (
    AutoSimulator,
    LinearSimulator,
    MeanTrajectory,
    PredictiveBands,
    ScoresSimulator,
    Simulator,
)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)
TRACIN = "TracIn-CP, 10 checkpoints"


def split(folder: Path) -> tuple[RunSet, RunSet, RunSet]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RunSet.load(folder).split(TRAIN, VALIDATION)


def evaluated(name: str) -> Evaluation:
    """Ours, the linear simulator and TracIn on one set."""
    train, validation, test = split(RUNS / name)
    tracin = ScoresSimulator(scores_of(RUNS / name)[TRACIN])
    simulators: dict[str, Simulator] = {
        f"{TRACIN}, calibrated": tracin,
        "linear": LinearSimulator(),
        "ours": AutoSimulator(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(simulators, train, test, validation)


def error_by_step(found: dict[str, Evaluation]) -> Figure:
    """A panel a set."""
    figure = Figure(figsize=(4.2 * len(found), 3.4), layout="constrained")
    for axis, (name, one) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        true, colour = one.runs.loss, iter(COLOURS)
        for method, losses in one.simulated.items():
            errors = np.nanmean(np.square(losses - true)[:, 1:], axis=(0, 2))
            grey = {"persistence": "#BBBBBB", "mean_trajectory": "#777777"}.get(method)
            axis.plot(np.arange(1, len(errors) + 1), errors, color=grey or next(colour), label=method)
        axis.set(xlabel="step", yscale="log", title=name)
    figure.axes[0].set_ylabel("mean squared error on held-out runs")
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def curves(one: Evaluation, name: str) -> Figure:
    """Recorded and simulated losses of one held-out run: ours at its best, typical and worst by rank."""
    true, run = one.runs.loss, 0
    errors = np.nanmean(np.square(one.simulated["ours"] - true), axis=1)[run]
    order = np.argsort(errors)
    shown = {"best": order[0], "typical": order[len(order) // 2], "worst": order[-1]}
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axis, (what, z) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        for colour, method in zip(COLOURS, ("linear", "ours"), strict=False):
            axis.plot(one.simulated[method][run, :, z], color=colour, lw=1.4, label=method)
        axis.plot(one.simulated["mean_trajectory"][run, :, z], color="#999999", lw=1, label="mean trajectory")
        axis.plot(true[run, :, z], color="black", lw=1.6, label="recorded")
        axis.set(xlabel="step", title=f"{what} of {len(order)} test examples: {one.runs.test.ids[z]}")
    figure.axes[0].set_ylabel("loss")
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"{name}, held-out run {one.runs.ids[run]}", fontsize=10)
    return figure


class Once:
    """A simulator that is fitted once, whatever the number of bands around it."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.left_out: np.ndarray | None = None

    def __copy__(self) -> Once:
        return self

    def fit(self, train: RunSet, validation: RunSet | None = None) -> Once:
        if self.simulator.examples_ is None:
            self.simulator.fit(train, validation)
        return self

    def out_of_fold(self, train: RunSet) -> np.ndarray:
        if self.left_out is None:
            self.left_out = self.simulator.out_of_fold(train)
        return self.left_out

    def simulate(self, *given: object) -> np.ndarray:
        return self.simulator.simulate(*given)  # type: ignore[arg-type]


def coverage(name: str) -> dict[str, list[float]]:
    """Simulator → the share of held-out losses within bands of each level."""
    train, validation, test = split(RUNS / name)
    found: dict[str, list[float]] = {}
    for method, simulator in {
        "mean trajectory": MeanTrajectory(),
        "linear": LinearSimulator(),
        "ours": AutoSimulator(),
    }.items():
        once = Once(simulator)
        for level in LEVELS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                low, high = (
                    PredictiveBands(once, level)
                    .fit(train, validation)
                    .predict(  # type: ignore[arg-type]
                        test.curricula, test.initial_loss
                    )
                )
            inside = ((low <= test.loss) & (test.loss <= high))[:, 1:]
            found.setdefault(method, []).append(float(inside.mean()))
    return found


def calibration(covered: dict[str, dict[str, list[float]]]) -> Figure:
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0.45, 1], [0.45, 1], color="#BBBBBB", lw=1)
    styles = dict(zip(covered, ("-", "--", ":"), strict=False))
    for name, methods in covered.items():
        for colour, (method, shares) in zip(COLOURS, methods.items(), strict=False):
            axis.plot(
                LEVELS,
                shares,
                styles[name],
                marker="o",
                markersize=3,
                color=colour,
                label=f"{method}, {name}",
            )
    axis.set(
        xlabel="level of the band", ylabel="share of held-out losses within", xlim=(0.45, 1), ylim=(0.3, 1.02)
    )
    axis.legend(fontsize=7, frameon=False)
    return figure


RATES = {
    "copa-minilm": ROOT / "runs" / "copa-minilm",
    "copa-last_layers": RUNS / "copa-last_layers",
    "copa-minilm-high-rate": ROOT / "runs" / "copa-minilm-high-rate",
}
"""COPA with the last two layers trained, at three rates (other test examples in the second)."""


def skill_by_rate() -> pd.DataFrame:
    """One row a rate: skill of the linear simulator and of ours."""
    rows = []
    for folder in RATES.values():
        if folder.is_relative_to(RUNS) and not recorded_and_scored(folder.name):
            continue
        train, validation, test = split(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = evaluate({"linear": LinearSimulator(), "ours": AutoSimulator()}, train, test, validation)
        rate = float(train[0].config["run"]["optimizer"]["lr"])
        rows.append({"rate": rate, "linear": one.skill("linear")[0], "ours": one.skill("ours")[0]})
    return pd.DataFrame(rows).sort_values("rate").set_index("rate")


def by_rate(frame: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for colour, method in zip(COLOURS, frame.columns, strict=False):
        axis.plot(frame.index, frame[method], "o-", color=colour, label=method)
    axis.axhline(0, color="#BBBBBB", lw=0.8)
    axis.set(
        xscale="log",
        xlabel="learning rate (AdamW)",
        ylabel="skill on held-out runs",
        title="COPA, last two layers",
    )
    axis.legend(fontsize=8, frameon=False)
    return figure


def coefficients(name: str) -> Figure:
    """A and B of every training example (rows, by mean B) for every test example (columns, likewise)."""
    train, validation, _ = split(RUNS / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = LinearSimulator(center="identity").fit(train, validation)
    rows, columns = np.argsort(fitted.B_.mean(1)), np.argsort(fitted.B_.mean(0))
    parts = {"A − 1/batch": fitted.A_ - 1 / fitted.batch_size_, "B": fitted.B_}
    figure = Figure(figsize=(8, 5), layout="constrained")
    for axis, (what, values) in zip(figure.subplots(1, 2), parts.items(), strict=True):
        most = float(np.quantile(np.abs(values), 0.99))
        image = axis.imshow(values[rows][:, columns], cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        axis.set(title=what, xlabel="test examples", ylabel="training examples")
        figure.colorbar(image, ax=axis, fraction=0.05)
    figure.suptitle(f"{name}: what one use of a training example adds to a test example's loss", fontsize=10)
    return figure


def main() -> None:
    """Draw all of them, of the sets that are there."""
    there = [name for name in ("copa-ia3", "rte-ia3", "winogrande-ia3") if recorded_and_scored(name)]
    found = {name: evaluated(name) for name in there}
    save_figure(error_by_step(found), "error_by_step")
    save_figure(curves(found[there[0]], there[0]), "curves")
    save_figure(calibration({name: coverage(name) for name in there[:2]}), "calibration")
    save_figure(by_rate(skill_by_rate()), "rate")
    save_figure(coefficients(there[0]), "coefficients")


if __name__ == "__main__":
    main()
