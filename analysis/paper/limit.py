"""The limit: exact derivatives through training beside scores and simulators, judged by retraining one run.

    python analysis/paper/limit.py --measure DATA    (the folder of copa.jsonl) trains, scores, retrains
    python analysis/paper/limit.py                   remakes the table and figure from what was measured

One recorded run of MiniLM (the last two layers and the head are trained by AdamW for 96 steps) is trained
again with examples left out: single ones, 5 %, or half of those that it uses. Every method predicts the
change of the final loss of test examples. Scores do so by adding up what they say of the examples left out,
in the units that they state. limit_measure.py has how each is measured, and what a pass is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from limit_measure import ALONG, DATA, N_TEST, SETS, base_run, measure
from protocol import RESULTS
from reporting import DRAWS, bootstrap_mean, write_table
from scipy.stats import spearmanr

from simfluence.attribution import InfluenceScores
from simfluence.runs import Run

mpl.use("Agg")
import matplotlib.pyplot as plt

SCORES = {
    "gradient_step": "Adam's metric, at the start",
    "gradient_step_along": f"Adam's metric, at {len(ALONG)} steps of the run",
    "tracin": "TracIn, 10 checkpoints",
    "ekfac": "EK-FAC, at the end",
    "unrolled": "unrolled, no Hessian",
    "unrolled_held": "unrolled, no Hessian, v held",
    "metagradients": "metagradients",
}
"""Method → what the table calls it."""
FORWARD = 1 / 3
"""A forward pass alone, as a share of one forward and backward."""
HESSIAN_PRODUCT = 2
"""A Hessian-vector product, in passes forward and backward: it goes through the graph of both once more."""


def rises(scores: InfluenceScores, run: Run) -> np.ndarray:
    """What the scores predict that the loss rises by if an example is left out, [train, test]."""
    batch, steps = float(run.curriculum.batch_sizes[0]), len(run)
    if scores.method in ("metagradients", "unrolled"):
        return scores.scores
    counts = run.curriculum.counts().toarray()  # [step, train]
    weight = {"rate": run.learning_rate, "use": np.ones(steps), "run": np.full(steps, 1 / steps)}[
        scores.weighing
    ]
    counts = counts * weight[:, None] * scores.scale / batch
    if not scores.steps:
        return counts.sum(0)[:, None] * scores.scores
    latest = np.searchsorted(scores.steps, np.arange(steps), side="right") - 1
    parts = [counts[latest == number].sum(0)[:, None] * part for number, part in enumerate(scores.scores)]
    return np.sum(parts, 0)


def predictions(name: str) -> tuple[pd.DataFrame, np.ndarray, dict[str, tuple[np.ndarray, float]]]:
    """The edits, with the passes that retraining takes; the true changes of the final losses [edit, test];
    and method → (predicted ones, passes)."""
    runs, run = base_run(name)
    truth = pd.read_csv(DATA / f"limit-{name}.csv", keep_default_na=False)
    losses = truth.filter(regex=r"^z\d+$").to_numpy()[:, :N_TEST]
    edits = truth[["kind", "left out"]]
    left = np.zeros((len(edits), run.curriculum.n_examples))
    for row, text in enumerate(edits["left out"].astype(str)):
        left[row, [int(number) for number in text.split()]] = 1
    edits = edits.assign(passes=(1 - left) @ np.bincount(run.curriculum.examples, minlength=left.shape[1]))
    found = {}
    for method, shown in SCORES.items():
        if not (file := DATA / f"limit-{name}-{method}.safetensors").exists():
            continue  # not measured
        scores = InfluenceScores.load(file)
        cost = scores.provenance
        passes = cost["gradients"] + HESSIAN_PRODUCT * cost["hessian_products"] + FORWARD * cost["forward"]
        found[shown] = (left @ rises(scores, run))[:, :N_TEST], passes
    recording = len(run.curriculum.examples) + FORWARD * len(run.evaluated) * len(runs.test)
    simulated = pd.read_csv(DATA / f"limit-{name}-simulators.csv", keep_default_na=False)
    for method, rows in simulated.groupby("method", sort=False):
        if rows["left out"].astype(str).tolist()[: len(edits)] != edits["left out"].astype(str).tolist():
            raise ValueError(f"{name}: simulators and retraining have other edits; measure them again")
        final = rows.filter(regex=r"^z\d+$").to_numpy()[: len(edits)]
        words = method.split()
        count = int(words[1]) if words[1].isdigit() else 1
        passes = count * recording + (found[SCORES["gradient_step"]][1] if "scores" in words else 0.0)
        found[method] = final - final[0], passes
    return (
        edits[1:],
        (losses - losses[0])[1:],
        {key: (value[1:], cost) for key, (value, cost) in found.items()},
    )


# --------------------------------------------------------------------------------------- metrics


def each(true: np.ndarray, predicted: np.ndarray, of: Callable[..., float]) -> np.ndarray:
    """A correlation over edits, of each test example [test]."""
    return np.array([of(a, b) for a, b in zip(true.T, predicted.T, strict=True)])


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else np.nan


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else np.nan


def skill(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """1 − Σ(error²)/Σ(change²) over edits and test examples, with its 95 % bootstrap interval over test
    examples: 0 is "nothing changes"."""
    error, change = ((true - predicted) ** 2).sum(0), (true**2).sum(0)
    drawn = np.random.default_rng(0).integers(len(change), size=(DRAWS, len(change)))
    low, high = np.percentile(1 - error[drawn].sum(1) / change[drawn].sum(1), [2.5, 97.5])
    return float(1 - error.sum() / change.sum()), float(low), float(high)


def measured() -> list[str]:
    """The sets whose retraining and simulators are measured."""
    return [name for name in SETS if (DATA / f"limit-{name}-simulators.csv").exists()]


def table() -> pd.DataFrame:
    """A row for each set, kind of edit and method."""
    rows = []
    for name in measured():
        edits, true, found = predictions(name)
        for kind in dict.fromkeys(edits["kind"]):
            here = (edits["kind"] == kind).to_numpy()
            for method, (predicted, passes) in found.items():
                row = {"set": name, "left out": kind, "method": method, "edits": here.sum(), "passes": passes}
                row["retraining passes"] = edits["passes"][here].sum()
                for metric, of in (("Pearson", pearson), ("Spearman", spearman)):
                    values = bootstrap_mean(each(true[here], predicted[here], of))
                    row |= dict(zip((metric, f"{metric} low", f"{metric} high"), values, strict=True))
                values = skill(true[here], predicted[here])
                row |= dict(zip(("skill", "skill low", "skill high"), values, strict=True))
                rows.append(row | {"rms change": np.sqrt((true[here] ** 2).mean()), "test examples": N_TEST})
    frame = pd.DataFrame(rows)
    costs = ["passes", "retraining passes"]
    frame[costs] = frame[costs].round().astype(int)
    return frame.round({column: 4 if column == "rms change" else 3 for column in frame.columns[6:]})


# --------------------------------------------------------------------------------------- showing


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed: intervals beside their means, skill below −10 off scale."""

    def shown(row: pd.Series, metric: str) -> str:
        mean, low, high = row[metric], row[f"{metric} low"], row[f"{metric} high"]
        return "off scale" if mean < -10 else f"{mean:.2f} [{low:.2f}, {high:.2f}]"

    columns = {
        metric: frame.apply(shown, axis=1, metric=metric) for metric in ("Pearson", "Spearman", "skill")
    }
    return frame[["set", "left out", "edits", "method", "passes"]].assign(**columns)


def draw(frame: pd.DataFrame) -> None:
    """Correlation against cost, a row of panels a set, a panel a kind of edit."""
    names = measured()
    kinds, methods = list(dict.fromkeys(frame["left out"])), list(dict.fromkeys(frame["method"]))
    figure, panels = plt.subplots(
        len(names),
        len(kinds),
        figsize=(12, 1.5 + 3.2 * len(names)),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for line, name in zip(panels, names, strict=True):
        once = len(base_run(name)[1].curriculum.examples)
        for axes, kind in zip(line, kinds, strict=True):
            rows = frame[(frame["set"] == name) & (frame["left out"] == kind)].set_index("method")
            for method, row in rows.iterrows():
                errors = [[row["Pearson"] - row["Pearson low"]], [row["Pearson high"] - row["Pearson"]]]
                axes.errorbar(
                    row["passes"], row["Pearson"], errors, label=method, markersize=6, elinewidth=1,
                    fmt="s" if method.startswith("simulator") else "o", color=f"C{methods.index(method)}",
                )  # fmt: skip
            axes.axvline(once, color="grey", linestyle=":", label="one retraining")
            every = rows["retraining passes"].iloc[0]
            axes.axvline(every, color="black", linestyle="--", label="retraining for each of the edits")
            axes.axhline(0, color="black", linewidth=0.5)
            axes.set_xscale("log")
            axes.set_title(f"{name}, left out: {kind} ({rows['edits'].iloc[0]} edits)", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("forward and backward passes of single examples")
    for axes in panels[:, 0]:
        axes.set_ylabel(
            "Pearson, predicted and true change of loss\n(mean over test examples, 95 % interval)"
        )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, fontsize=8, loc="outside lower center", frameon=False)
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        figure.savefig(RESULTS / f"limit.{kind}", dpi=150, metadata=metadata)
    plt.close(figure)


def show() -> None:
    """The table and the figure from what was measured."""
    frame = table()
    about = (
        "One recorded run of each set (the last two layers and head of MiniLM-L6, a small model; AdamW, 96"
        " steps of 4, 128 training examples three times each), trained again in the same order with weight 0"
        f" for the examples left out. Predicted is the change of the final loss of {N_TEST} test examples."
        " Pearson and Spearman are over edits, mean over test examples; skill is 1 − Σ error²/Σ change²: 0 is"
        " 'nothing changes'; brackets are 95 % bootstrap intervals over test examples. Passes are forward and"
        " backward passes of single examples, counted as they were made; a Hessian-vector product is"
        f" {HESSIAN_PRODUCT}, a forward pass alone a third. Scores and simulators answer all edits for this"
        " cost; retraining costs up to 384 an edit. Weights of a run that are needed on the way are taken as"
        " kept; a simulator's cost is that of recording its runs. Simulators are asked with examples removed"
        " from their batches, which to them are means over the rest. A method without rows for a set is not"
        " measured there (--measure does it)."
    )
    columns = ["edits", "rms change", "retraining passes"]
    sizes = frame.groupby(["set", "left out"], sort=False)[columns].first().reset_index()
    caption = "The size of the true changes, and the passes of retraining for all edits of a kind:"
    write_table(
        RESULTS / "limit", frame, "The limit: derivatives through training, scores and simulators",
        "python analysis/paper/limit.py --measure DATA",
        [about, readable(frame), caption, sizes],
    )  # fmt: skip
    draw(frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="DATA")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure, options.sets)
    show()


if __name__ == "__main__":
    main()
