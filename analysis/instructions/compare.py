"""Predicted against retrained changes of SmolLM2-135M on 300 instructions, from the committed files alone.

    python analysis/instructions/compare.py

A simulator is fitted to the one recorded run in runs/smollm2-instructions, with its scores before training.
It predicts every edit of edits.yaml of which runs/smollm2-instructions-whatif holds a retraining. Written to
analysis/results/smollm2/ are what_ifs.csv (a row an edit and a simulator), changes.csv (a row an edit and a
test example), what_ifs.md and what_ifs.png.

Most what-ifs change how long the model trains, which changes its losses whatever the examples are. So beside
the predictions stands "length alone": the recorded curve of each test example, read at the edited number of
steps. Skill is 1 − MSE / MSE of predicting no change; beyond length means 1 − MSE / MSE of length alone.
"""

from __future__ import annotations

from dataclasses import replace
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
from simfluence.simulators import AutoSimulator, MeanTrajectory
from simfluence.whatif import what_if

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
SET = HERE.parents[1] / "runs" / "smollm2-instructions"
RESULTS = HERE.parent / "results" / "smollm2"
OURS, LENGTH = "scores before training", "length alone"
LARGEST = "half of the examples"
FEWER = ([0, 3, 75], [0, 8, 23, 75], [0, 3, 12, 31, 75], [0, 3, 8, 17, 41, 75])
"""Some of the steps after which the run was evaluated, to see what fewer evaluations cost. With
run.evaluate_within=0.2 the same recording had the first of these on a busy machine."""


def main() -> None:
    runs = RunSet.load(SET)
    retrained = {run.curriculum.fingerprint: run for run in RunSet.load(f"{SET}-whatif")}
    changes = pd.concat(
        [changes_of(name, fitted, runs, retrained) for name, fitted in simulators(runs).items()],
        ignore_index=True,
    )
    of_length = changes.loc[changes["simulator"] == LENGTH, "change"].to_numpy()
    changes["of_length"] = np.tile(of_length, changes["simulator"].nunique())
    table = pd.DataFrame(
        [
            {"simulator": simulator, "edit": edit, **measured(rows)}
            for (simulator, edit), rows in changes.groupby(["simulator", "edit"], sort=False)
        ]
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    ours = changes[changes["simulator"] == OURS].drop(columns="simulator")
    ours.to_csv(RESULTS / "changes.csv", index=False, float_format="%.5g")
    table.to_csv(RESULTS / "what_ifs.csv", index=False, float_format="%.5g")
    (RESULTS / "what_ifs.md").write_text(report(table, changes), encoding="utf-8")
    drawn(ours).savefig(RESULTS / "what_ifs.png", dpi=110)
    print(report(table, changes))


def simulators(runs: RunSet) -> dict[str, Fitted]:
    """The default simulator with scores of several origins, fitted to the one run; and length alone."""
    before = InfluenceScores.load(SET / INITIAL_SCORES)
    later = InfluenceScores.load(SET / "scores" / "step-25.safetensors")
    texts = attribute(recorded_texts(SET, runs[0]), "tfidf")
    found = {
        LENGTH: fit(runs, MeanTrajectory()),
        OURS: fit(runs, AutoSimulator(before)),
        "scores after step 25": fit(runs, AutoSimulator(later)),
        "both scores": fit(runs, AutoSimulator([before, later])),
        "similarity of texts (TF-IDF)": fit(runs, AutoSimulator(texts)),
    }
    for steps in FEWER:
        found[f"{OURS}, {len(steps)} evaluations"] = fit(thinned(runs, steps), AutoSimulator(before))
    return found


def thinned(runs: RunSet, steps: list[int]) -> RunSet:
    """The one run with its losses after these steps alone."""
    chosen = np.isin(runs[0].evaluated, steps)
    few = replace(runs[0], evaluated=runs[0].evaluated[chosen], metrics={"loss": runs[0].loss[chosen]})
    return RunSet([few], runs.train, runs.test)


def changes_of(simulator: str, fitted: Fitted, runs: RunSet, retrained: dict[str, Run]) -> pd.DataFrame:
    """A row a retrained edit and test example: predicted and true change of the loss after the last step."""
    found = []
    for name, edit in read_edits(HERE / "edits.yaml").items():
        answer = what_if(fitted, runs[0], edit, train=runs.train, test=runs.test)
        if (truth := retrained.get(answer.edited.fingerprint)) is not None:
            rows = answer.changes.assign(true_change=truth.loss[-1] - runs[0].loss[-1])
            found.append(rows.assign(simulator=simulator, edit=name, steps=len(answer.edited)))
    return pd.concat(found, ignore_index=True)


def measured(rows: pd.DataFrame) -> dict[str, float]:
    """How well the predicted changes of one edit, or of several, agree with the true ones."""
    predicted, true, of_length = (rows[name].to_numpy() for name in ("change", "true_change", "of_length"))
    missed = np.square(predicted - true).mean()
    known = {"steps": rows["steps"].iloc[0], "size": np.sqrt(np.square(true).mean()), **agreement(rows)}
    known["half_band"] = (rows["high"] - rows["low"]).mean() / 2
    known["skill"] = 1 - missed / np.square(true).mean()
    known["skill_beyond_length"] = 1 - missed / np.square(of_length - true).mean()
    beyond = pd.DataFrame({"change": predicted - of_length, "true_change": true - of_length})
    known["pearson_beyond_length"] = agreement(beyond)["pearson"]
    return known


COLUMNS = {
    "steps": "steps",
    "mean_predicted": "predicted",
    "mean_true": "retrained",
    "size": "size of a change",
    "pearson": "Pearson",
    "same_sign": "same sign",
    "in_band": "in band",
    "half_band": "half a band",
    "skill": "skill",
    "pearson_beyond_length": "Pearson beyond length",
    "skill_beyond_length": "skill beyond length",
}


def report(table: pd.DataFrame, changes: pd.DataFrame) -> str:
    """The tables, in Markdown."""
    ours = table[table["simulator"] == OURS].rename(columns=COLUMNS)[["edit", *COLUMNS.values()]]
    rest = changes[changes["edit"] != LARGEST]
    return "\n\n".join(
        [
            "# One run of SmolLM2-135M: what-ifs, predicted and retrained",
            "`python analysis/instructions/compare.py`, of what `analysis/instructions/run.sh` recorded.",
            ours.to_markdown(index=False, floatfmt=".3f"),
            "Changes of the loss after the last step: the means over 40 test examples, predicted from one run"
            " and its scores before training, and retrained; the root mean square of the true ones; over test"
            " examples, how they agree, the share within the 90 % bands, half their width, skill (1 − MSE /"
            " MSE of no change), and both beyond what the other number of steps does by itself.",
            "All what-ifs together, by what the predictions rest on (of groups: mean changes of a what-if and"
            " a group of test examples):",
            pooled(changes).to_markdown(index=False, floatfmt=".3f"),
            f"All but *{LARGEST}*, whose changes are the largest:",
            pooled(rest).to_markdown(index=False, floatfmt=".3f") + "\n",
        ]
    )


def pooled(changes: pd.DataFrame) -> pd.DataFrame:
    """A row for all that predictions may rest on: how well they agree, over all edits."""
    rows = [
        {"predicted from": simulator, "Pearson of groups": of_groups(of), **measured(of)}
        for simulator, of in changes.groupby("simulator", sort=False)
    ]
    shown = ["pearson", "same_sign", "in_band", "skill", "pearson_beyond_length", "skill_beyond_length"]
    return pd.DataFrame(rows)[["predicted from", "Pearson of groups", *shown]].rename(columns=COLUMNS)


def of_groups(rows: pd.DataFrame) -> float:
    """The correlation of the mean changes of every what-if and group of test examples."""
    means = rows.groupby(["edit", "group"], as_index=False)[["change", "true_change"]].mean()
    return agreement(means)["pearson"]


def drawn(changes: pd.DataFrame) -> plt.Figure:
    """Predicted against true changes, a panel an edit; in grey, what length alone predicts."""
    edits = list(dict.fromkeys(changes["edit"]))
    lines = -(-len(edits) // 3)
    figure, axes = plt.subplots(lines, 3, figsize=(9, 3 * lines), squeeze=False, layout="constrained")
    for axis, edit in zip(axes.flat, edits, strict=False):
        rows = changes[changes["edit"] == edit]
        axis.plot(rows["true_change"], rows["of_length"], "x", color="0.75", ms=4, label="length alone")
        for group, of in rows.groupby("group"):
            axis.plot(of["true_change"], of["change"], ".", label=group)
        reach = 1.1 * rows[["change", "true_change"]].abs().to_numpy().max()
        axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach))
        axis.locator_params(nbins=5)
        axis.set_title(f"{edit} (r {agreement(rows)['pearson']:.2f})", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(edits) :]:
        axis.axis("off")
    figure.supxlabel("change of the loss after retraining", fontsize=9)
    figure.supylabel("predicted change", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main()
