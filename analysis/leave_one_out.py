"""Leaving out single training examples, predicted and retrained.

    python analysis/leave_one_out.py --measure    (trains what is missing: ten seconds each on a free core)
    python analysis/leave_one_out.py              (from the committed files)

Removals from recorded runs of openbookqa and of made-up facts (leave_one_out_measuring.py), and those of the
benchmark's standards (paper/standards.py): the same facts, but trainings on all 200 examples, three passes.
Simulators are fitted to recorded runs of the set, of which the edited one is none.
Results: analysis/results/leave_one_out.{csv,md,png}.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from leave_one_out_measuring import NOTHING, RECORDED, measure, measured, orders
from matplotlib.figure import Figure
from scipy import sparse, stats

from simfluence import AutoSimulator, Curriculum, Run, RunSet, fit
from simfluence.attribution import InfluenceScores
from simfluence.curriculum import remove
from simfluence.evaluation.standards import SubsetBank
from simfluence.finetuning.subsets import subset_curriculum
from simfluence.fitted import Fitted
from simfluence.questions.many import banded, many_changes
from simfluence.questions.rank import LEAVE_OUT, Edits, predicted_changes
from simfluence.runs.schedule import STRETCH

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BANK = RESULTS / "paper" / "data" / "standards" / "facts-leave-one-out.parquet"
Array = npt.NDArray[np.float64]


@dataclass
class Case:
    """One run and what was retrained: which examples were left out, on which curricula, and the true changes
    of the final losses, [example, test].
    """

    name: str
    order: str
    runs: RunSet
    run: Run
    left_out: npt.NDArray[np.int64]
    edited: list[Curriculum]
    true: Array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    if parser.parse_args().measure:
        for name in RECORDED:
            measure(name)
    cases = [case for name in RECORDED if measured(name).exists() for case in recorded(name)]
    cases += standards()
    found = {name: fitted_simulators(name) for name in dict.fromkeys(case.name for case in cases)}
    predicted = {
        (case.name, case.order, simulator, method): (case, fitted, change)
        for case in cases
        for simulator, fitted in found[case.name].items()
        for method, change in predictions(case, fitted).items()
    }
    frame = pd.DataFrame([row(key, *value) for key, value in predicted.items()])
    frame.to_csv(RESULTS / "leave_one_out.csv", index=False, float_format="%.4g")
    noise = pd.DataFrame(list(between_orders(cases)))
    shown = [cells(part).to_markdown(index=False, disable_numparse=True) for part in (frame, noise)]
    (RESULTS / "leave_one_out.md").write_text("\n\n".join([ABOUT, shown[0], NOISE, shown[1], READ]) + "\n")
    figure(predicted).savefig(RESULTS / "leave_one_out.png", dpi=130)


# --------------------------------------------------------------------------------------- what was retrained


def recorded(name: str) -> Iterator[Case]:
    """The last recorded run of a set, and the same in another order."""
    runs, found = RunSet.load(RECORDED[name]), pd.read_csv(measured(name))
    run = runs[-1]
    for order, curriculum in orders(run).items():
        rows = found[found["order"] == order].set_index("left_out")[runs.test.ids]
        if len(rows) < 3:
            continue
        base = rows.loc[NOTHING].to_numpy()
        names = [name for name in rows.index if name != NOTHING]
        left_out = runs.train.rows(names)
        edited = [remove(curriculum, [int(example)]) for example in left_out]
        own = run if order == "recorded" else with_ends(run, curriculum, run.initial_loss, base)
        yield Case(name, order, runs, own, left_out, edited, rows.loc[names].to_numpy() - base)


def standards() -> Iterator[Case]:
    """All examples in the orders of several seeds, where more than everything was trained."""
    runs, bank = RunSet.load(RECORDED["facts"]), SubsetBank.load(BANK)
    initial = runs.initial_loss.mean(0)
    for number, seed in enumerate(bank.seeds):
        done = np.flatnonzero(bank.trained[:, number] & ~bank.kept.all(1))
        if len(done) < 3:
            continue
        everything = int(np.flatnonzero(bank.kept.all(1))[0])
        whole, *edited = (
            subset_curriculum(bank.kept[subset], seed, epochs=3, batch_size=4)
            for subset in (everything, *done)
        )
        base = bank.losses[everything, number]
        left_out = np.array([int(np.flatnonzero(~bank.kept[subset])[0]) for subset in done])
        run = with_ends(runs[-1], whole, initial, base)
        yield Case(
            "facts", f"all 200, seed {seed}", runs, run, left_out, edited, bank.losses[done, number] - base
        )


def with_ends(like: Run, curriculum: Curriculum, initial: npt.ArrayLike, final: npt.ArrayLike) -> Run:
    """A run of which the losses before the first and after the last step are known."""
    steps, rate = len(curriculum), float(np.nanmean(like.learning_rate))
    return Run(
        "retrained",
        curriculum,
        {"loss": np.stack([initial, final])},
        np.array([0, steps]),
        np.full(steps, rate),
        np.full(steps, np.nan),
        optimizer=like.optimizer,
    )


# --------------------------------------------------------------------------------------- what is predicted


def fitted_simulators(name: str) -> dict[str, Fitted]:
    """The default simulator, and that with the scores beside the set, where there are any."""
    runs, file = RunSet.load(RECORDED[name]), RECORDED[name] / "scores.safetensors"
    found = {"auto": fit(runs, AutoSimulator(), held_out=runs[-1].id)}
    if file.exists():
        scores = InfluenceScores.load(file)
        found["auto with scores"] = fit(runs, AutoSimulator(scores), held_out=runs[-1].id)
    return found


def predictions(case: Case, fitted: Fitted) -> dict[str, Array]:
    """The predicted changes, [example, test], of every way to predict them."""
    simulated, with_residual = (
        many_changes(fitted, case.run, case.edited, with_residual=residual).change
        for residual in (False, True)
    )
    edits = Edits(case.run.curriculum, [np.array([row]) for row in case.left_out], LEAVE_OUT)
    first, _ = predicted_changes(fitted, case.run, edits, STRETCH, first_order=True)
    return {
        "simulated": simulated,
        "simulated, with the residual": with_residual,
        "first order": first.change,
    }


def row(key: tuple[str, str, str, str], case: Case, fitted: Fitted, change: Array) -> dict[str, object]:
    """One row of the table."""
    mean, true = change.mean(1), case.true.mean(1)
    worst = max(len(mean) // 3, 1)
    both = np.intersect1d(np.argsort(mean)[:worst], np.argsort(true)[:worst])
    n, where = len(mean), (np.arange(len(mean)), case.left_out)
    uses = np.asarray(case.run.curriculum.counts().sum(0))[case.left_out]
    by = sparse.csr_array((-uses, where), shape=(n, len(case.runs.train)))
    original = case.run.loss[-1].astype(np.float64)
    everywhere = {"all": np.arange(change.shape[1])}
    bands = banded(fitted, case.run, original, change, everywhere, by, case.runs.train)
    return {
        **dict(zip(("set", "order", "simulator", "predicted"), key, strict=True)),
        "examples": n,
        "Pearson": stats.pearsonr(mean, true).statistic,
        "Spearman": stats.spearmanr(mean, true).statistic,
        "Pearson, all pairs": stats.pearsonr(change.ravel(), case.true.ravel()).statistic,
        "Pearson, own group": stats.pearsonr(own_group(case, change), own_group(case, case.true)).statistic,
        "worst third": len(both) / worst,
        "explained": 1 - np.square(true - mean).mean() / np.square(true).mean(),
        "sign": np.mean(np.sign(mean) == np.sign(true)),
        "in the band": np.mean((bands["low"] <= true) & (true <= bands["high"])),
        "sd predicted": mean.std(),
        "sd true": true.std(),
        "mean true": true.mean(),
    }


def own_group(case: Case, change: Array) -> Array:
    """The mean change over the test examples of the group of the example that is left out, [example]; over
    all of them where none is of its group.
    """
    groups, labels = np.array(case.runs.test.groups), np.array(case.runs.train.groups)[case.left_out]
    of = [groups == label if (groups == label).any() else np.ones(len(groups), bool) for label in labels]
    return np.array([values[which].mean() for values, which in zip(change, of, strict=True)])


def between_orders(cases: list[Case]) -> Iterator[dict[str, object]]:
    """How far the true changes of one order agree with those of another."""
    for number, one in enumerate(cases):
        for other in cases[number + 1 :]:
            if one.name != other.name:
                continue
            _, first, second = np.intersect1d(one.left_out, other.left_out, return_indices=True)
            if len(first) < 5:  # other trainings, which share few of the examples
                continue
            true, again = one.true[first], other.true[second]
            yield {
                "set": one.name,
                "orders": f"{one.order}, {other.order}",
                "examples": len(first),
                "Pearson": stats.pearsonr(true.mean(1), again.mean(1)).statistic,
                "Spearman": stats.spearmanr(true.mean(1), again.mean(1)).statistic,
                "Pearson, all pairs": stats.pearsonr(true.ravel(), again.ravel()).statistic,
                "Pearson, own group": stats.pearsonr(
                    own_group(one, one.true)[first], own_group(other, other.true)[second]
                ).statistic,
                "sd of both": f"{true.mean(1).std():.2g}, {again.mean(1).std():.2g}",
            }


# ------------------------------------------------------------------------------------------------- shown


ABOUT = """\
# Leaving out single training examples

Made by `python analysis/leave_one_out.py`. Each example is left out of a run with all its uses, later
examples move up, and the run is trained again in place. Compared are predicted and true changes of the mean
final loss over test examples; over all pairs: of every single test example; own group: of the test examples
of the group of the example that is left out (in facts: of the one fact that it states). "recorded" and
"shuffled" are the last recorded run and the same in another order; "all 200, seed …" are trainings on all
facts, three passes, half as long again as those that the simulator was fitted to, with an incomplete last
batch dropped (first order and bands take it as it is with one).

worst third: how many of the third of examples whose removal lowers the loss most are found (by chance: .33).
explained: 1 − mean squared error / mean squared true change. sign: the share of examples whose direction is
right. in the band: the share of true changes within the 90 % band."""

NOISE = """\
## The noise of single removals

The same examples left out of the same training in another order, true changes against true changes. A
prediction for one order cannot be expected to agree with another better than orders agree."""


READ = """\
## What this says

On openbookqa, trained gently, single removals are predicted nearly exactly, in both orders, by simulation
and to first order. On facts, trained at twice the rate, the change of the mean loss over all 40 facts is not
predicted: it hardly repeats in another order, and most removals raise it, perhaps since each leaves a last
batch of one example. What is predicted there is the change of the fact that the example states, in each
order for itself: it depends on the order, as the low agreement between orders shows. Where training goes on
until losses are near 0.03 ("all 200"), single removals do not repeat between seeds, and no prediction does
well in both.

Without the residual more signs are right in the recorded and shuffled runs, and more is explained; in one of
the longer trainings ("seed 1") it is the other way round. The order of examples is the same either way, or
nearly. `rank` leaves the residual out. Bands held every true change: for edits as small as these they are
wider than they need be."""


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers of two digits."""
    shown = frame.copy()
    for name in frame.select_dtypes(float):
        small = name.startswith(("sd", "mean"))
        shown[name] = [f"{value:.2g}" if small else f"{value:.2f}" for value in frame[name]]
    return shown


def figure(predicted: dict[tuple[str, str, str, str], tuple[Case, Fitted, Array]]) -> Figure:
    """True against predicted changes of the mean loss, a panel an order, simulated and to first order."""
    panels = list(dict.fromkeys(key[:2] for key in predicted))
    columns = (len(panels) + 1) // 2
    drawn = Figure(figsize=(3.6 * columns, 6.4), layout="constrained")
    axes = drawn.subplots(2, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (name, order) in zip(axes, panels, strict=False):
        for method, colour in (("simulated", "#0072B2"), ("first order", "#D55E00")):
            case, _, change = predicted[name, order, "auto", method]
            axis.plot(change.mean(1), case.true.mean(1), "o", ms=4, alpha=0.8, color=colour, label=method)
        axis.axline((0, 0), slope=1, color="#BBBBBB", lw=1)
        axis.axhline(0, color="#DDDDDD", lw=0.6)
        axis.axvline(0, color="#DDDDDD", lw=0.6)
        axis.set_title(f"{name}, {order}: {len(case.left_out)} removals", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.locator_params(nbins=5)
        axis.legend(fontsize=7, frameon=False)
    drawn.supxlabel("predicted change of the mean final loss", fontsize=9)
    drawn.supylabel("change after retraining", fontsize=9)
    return drawn


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
