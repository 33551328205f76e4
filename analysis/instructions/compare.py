"""Predicted against retrained changes of SmolLM2-135M on 300 instructions, from the committed files alone.

    python analysis/instructions/compare.py

A simulator is fitted to the one recorded run in runs/smollm2-instructions, with its scores before training.
It predicts every edit of edits.yaml of which runs/smollm2-instructions-whatif holds a retraining. Written to
analysis/results/smollm2/ are what_ifs.csv (a row an edit and a simulator), changes.csv (a row an edit and a
test example), what_ifs.md and what_ifs.png.

Beside the predictions stand two that take no simulator: no change at all, and the same change for every test
example, namely the mean of the true ones, which nobody could know. Skill is 1 − MSE / MSE of no change.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from simfluence.answer import agreement
from simfluence.attribution.methods import attribute
from simfluence.edit_files import read_edits
from simfluence.finetuning.attribution_context import recorded_texts
from simfluence.fitted import Fitted, fit
from simfluence.runs import Run, RunSet
from simfluence.scores import INITIAL_SCORES, InfluenceScores
from simfluence.simulators import AutoSimulator
from simfluence.whatif import what_if

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
SET = HERE.parents[1] / "runs" / "smollm2-instructions"
RESULTS = HERE.parent / "results" / "smollm2"
OURS = "scores before training"


def main() -> None:
    runs = RunSet.load(SET)
    retrained = {run.curriculum.fingerprint: run for run in RunSet.load(f"{SET}-whatif")}
    changes = pd.concat(
        [changes_of(name, fitted, runs, retrained) for name, fitted in simulators(runs).items()],
        ignore_index=True,
    )
    ours = changes[changes["simulator"] == OURS].drop(columns="simulator")
    table = pd.DataFrame(
        [
            {"simulator": simulator, "edit": edit, **measured(rows)}
            for (simulator, edit), rows in changes.groupby(["simulator", "edit"], sort=False)
        ]
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    ours.to_csv(RESULTS / "changes.csv", index=False, float_format="%.5g")
    table.to_csv(RESULTS / "what_ifs.csv", index=False, float_format="%.5g")
    (RESULTS / "what_ifs.md").write_text(report(table, changes), encoding="utf-8")
    drawn(ours).savefig(RESULTS / "what_ifs.png", dpi=110)
    print(report(table, changes))


def simulators(runs: RunSet) -> dict[str, Fitted]:
    """The default simulator with scores of several origins, fitted to the one run."""
    texts = attribute(recorded_texts(SET, runs[0]), "tfidf")
    scores = {OURS: InfluenceScores.load(SET / INITIAL_SCORES), "similarity of texts (TF-IDF)": texts}
    along = sorted((SET / "scores").glob("step-*.safetensors"))
    for file in along:
        scores[f"scores at {file.stem.replace('-', ' ')}"] = InfluenceScores.load(file)
    found = {name: fit(runs, AutoSimulator(of)) for name, of in scores.items()}
    if along:
        several = [scores[OURS], *(InfluenceScores.load(file) for file in along)]
        found["scores before and after"] = fit(runs, AutoSimulator(several))
    return found


def changes_of(simulator: str, fitted: Fitted, runs: RunSet, retrained: dict[str, Run]) -> pd.DataFrame:
    """A row a retrained edit and test example: predicted and true change of the loss after the last step."""
    found = []
    for name, edit in read_edits(HERE / "edits.yaml").items():
        answer = what_if(fitted, runs[0], edit, train=runs.train, test=runs.test)
        if (truth := retrained.get(answer.edited.fingerprint)) is None:
            print(f"not retrained: {name}")
            continue
        rows = answer.changes.assign(true_change=truth.loss[-1] - runs[0].loss[-1])
        found.append(rows.assign(simulator=simulator, edit=name, steps=len(answer.edited)))
    return pd.concat(found, ignore_index=True)


def measured(rows: pd.DataFrame) -> dict[str, float]:
    """How well the predicted changes of one edit, or of several, agree with the true ones."""
    predicted, true = rows["change"].to_numpy(), rows["true_change"].to_numpy()
    nothing = np.square(true).mean()
    known = {"steps": rows["steps"].iloc[0], "true size": np.sqrt(nothing), **agreement(rows)}
    known["skill"] = 1 - np.square(predicted - true).mean() / nothing
    known["skill of the true mean"] = 1 - np.square(true.mean() - true).mean() / nothing
    return known


def report(table: pd.DataFrame, changes: pd.DataFrame) -> str:
    """The tables, in Markdown."""
    columns = {
        "edit": "what if",
        "steps": "steps",
        "mean_predicted": "predicted",
        "mean_true": "retrained",
        "true size": "size of a change",
        "pearson": "Pearson",
        "same_sign": "same sign",
        "in_band": "in band",
        "skill": "skill",
        "skill of the true mean": "… of the true mean",
    }
    ours = table[table["simulator"] == OURS].rename(columns=columns)[list(columns.values())]
    pooled = [
        {"simulator": simulator, **all_edits(rows)}
        for simulator, rows in changes.groupby("simulator", sort=False)
    ]
    return "\n\n".join(
        [
            "# One run of SmolLM2-135M: what-ifs, predicted and retrained",
            "`python analysis/instructions/compare.py`, of what `analysis/instructions/run.sh` recorded.",
            ours.to_markdown(index=False, floatfmt=".3f"),
            "Changes of the loss after the last step: the means over 40 test examples, predicted and"
            " retrained; the root mean square of the true ones; over test examples, how they agree, the share"
            " within the 90 % bands, and skill (1 − MSE / MSE of no change), beside that of the true mean.",
            pd.DataFrame(pooled).to_markdown(index=False, floatfmt=".3f"),
            "All what-ifs together: over pairs of a what-if and a test example, and over the mean changes"
            " of a what-if and a group of test examples.\n",
        ]
    )


def all_edits(rows: pd.DataFrame) -> dict[str, float]:
    means = rows.groupby(["edit", "group"], as_index=False)[["change", "true_change"]].mean()
    one, of_groups = measured(rows), agreement(means)
    return {
        "Pearson": one["pearson"],
        "same sign": one["same_sign"],
        "in band": one["in_band"],
        "skill": one["skill"],
        "Pearson, groups": of_groups["pearson"],
        "same sign, groups": of_groups["same_sign"],
    }


def drawn(changes: pd.DataFrame) -> plt.Figure:
    """Predicted against true changes, a panel an edit."""
    edits = list(dict.fromkeys(changes["edit"]))
    groups = list(dict.fromkeys(changes["group"].sort_values()))
    columns = 3
    figure, axes = plt.subplots(
        -(-len(edits) // columns), columns, figsize=(9, 3 * -(-len(edits) // columns)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, edit in zip(axes.flat, edits, strict=False):
        rows = changes[changes["edit"] == edit]
        for number, group in enumerate(groups):
            of = rows[rows["group"] == group]
            errors = [of["change"] - of["low"], of["high"] - of["change"]]
            axis.errorbar(of["true_change"], of["change"], errors, fmt="none", color="0.85", zorder=0)
            axis.plot(of["true_change"], of["change"], ".", color=f"C{number}", label=group)
        reach = 1.1 * rows[["change", "true_change"]].abs().to_numpy().max()
        axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach))
        axis.set_title(f"{edit} (r {agreement(rows)['pearson']:.2f})", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(edits) :]:
        axis.axis("off")
    figure.supxlabel("change of the loss after retraining", fontsize=9)
    figure.supylabel("predicted change, with its 90 % band", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(groups), fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main()
