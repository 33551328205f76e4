"""Does a search win? What it finds, retrained beside ten random choices of equal size.

    python analysis/search.py --measure DATA    (five minutes on one quiet core)
    python analysis/search.py

Of three committed sets, the last run is edited: 20 of its 128 training examples are left out so that the mean
loss of all test examples (or of one group of them) is least, or its groups are put into an order. The
simulator (auto, without scores) is fitted to 22 other runs. Each edit is trained again from the same start
with the same settings, and the test examples are evaluated after the last step; so is the run itself, whose
losses must be those recorded. What results/search_retrained.json holds is not trained again. DATA is the
folder with copa.jsonl.

results/search.csv has a row an edit: the predicted change of the mean loss and its band, the change that a
simulator predicts which was fitted to the other nine runs ("elsewhere"; the search did not choose by it), and
the true change. results/search.md says of each question what was promised, how much of it was kept, and what
random choices did.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from simfluence import RunSet, fit
from simfluence.curriculum import Curriculum
from simfluence.edit import Edit
from simfluence.finetuning.experiment import prepare
from simfluence.finetuning.retrain import recorded_config, retrain
from simfluence.questions.many import chosen_tests, many_changes, with_bands
from simfluence.questions.search import search
from simfluence.runs import Run
from simfluence.simulators import make_simulator

HERE = Path(__file__).resolve().parent
RESULTS, SETS = HERE / "results", HERE.parent / "runs"
QUESTIONS = (
    ("openbookqa-minilm", "leave_out", "all"),
    ("copa-minilm", "leave_out", "all"),
    ("facts-minilm", "leave_out", "all"),
    ("openbookqa-minilm", "leave_out", "completion"),
    ("openbookqa-minilm", "order", "all"),
)
KEPT = RESULTS / "search_retrained.json"
K, RANDOM, RISKS = 20, 10, (0.0, 1.0)


def choices(runs: RunSet, fitted, goal: str, of: str) -> dict[str, Edit]:
    """What the search finds, with and without risk, and random choices of the same size."""
    run, options = runs[-1], {"train": runs.train, "test": runs.test, "of": of}
    found = {
        f"search, risk {risk:g}": search(fitted, run, goal=goal, k=K, risk=risk, **options).edit
        for risk in RISKS
    }
    for number in range(RANDOM):
        rng = np.random.default_rng(number)
        if goal == "order":
            groups = sorted({runs.train.groups[row] for row in run.curriculum.used})
            edit = Edit("order", groups=rng.permutation(groups))
        else:
            rows = np.sort(rng.choice(run.curriculum.used, K, replace=False))
            edit = Edit("remove", ids=[runs.train.ids[row] for row in rows])
        found[f"random {number}"] = edit
    return found


class Retrained:
    """Losses after the last step of edited runs of one set, kept in a file."""

    def __init__(self, name: str, run: Run) -> None:
        self.name, self.run, self.prepared = name, run, None
        np.testing.assert_allclose(self.of("nothing", run.curriculum), run.loss[-1], rtol=1e-3)

    def of(self, edit: str, curriculum: Curriculum) -> np.ndarray:
        known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        key = f"{self.name} {edit}"
        if key not in known:
            known[key] = [round(loss, 6) for loss in self._trained(curriculum)]
            KEPT.write_text(json.dumps(known, indent=0))
        return np.array(known[key])

    @torch.no_grad()
    def _trained(self, curriculum: Curriculum) -> list[float]:
        config = recorded_config(self.run)
        self.prepared = self.prepared or prepare(config, "cpu")
        with torch.enable_grad():
            *_, steps = retrain(self.prepared, SimpleNamespace(curriculum=curriculum, config=config))
        assert steps == len(curriculum)
        model, test = self.prepared.model, self.prepared.task.test
        model.eval()
        return [float(loss) for at in range(0, len(test), 10) for loss in model.losses(test[at : at + 10])]


def measure(file: Path) -> None:
    """Asks and retrains; writes the table anew after every question."""
    rows: list[dict[str, object]] = []
    for name, goal, of in QUESTIONS:
        runs = RunSet.load(SETS / name)
        run, (tests,) = runs[-1], chosen_tests(runs.test, of).values()
        retrained = Retrained(name, run)
        fitted = fit(runs, make_simulator("auto"), held_out=run.id)
        elsewhere = fit(runs[list(range(22, 31))], make_simulator("auto"), train=8, validation=1, level=None)
        found = choices(runs, fitted, goal, of)
        edited = [edit.apply(run, runs.train) for edit in found.values()]
        changes = many_changes(fitted, run, edited)
        predicted = with_bands(fitted, run, changes, {of: tests}, runs.train)
        other = many_changes(elsewhere, run, edited).change[:, tests].mean(1)
        for number, (choice, edit) in enumerate(found.items()):
            row = predicted.iloc[number][["change", "low", "high", "verdict"]].to_dict()
            true = float((retrained.of(str(edit), edited[number]) - run.loss[-1])[tests].mean())
            about = {"set": name, "goal": goal, "of": of, "choice": choice, "edit": str(edit)}
            rows.append({**about, **row, "elsewhere": other[number], "true": true})
            print(name, goal, of, choice, f"predicted {row['change']:.4f}, true {true:.4f}", flush=True)
        pd.DataFrame(rows).to_csv(file, index=False)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a question."""
    found = []
    for (name, goal, of), part in table.groupby(["set", "goal", "of"], sort=False):
        random = part[part["choice"].str.startswith("random")]
        for risk in RISKS:
            row = part[part["choice"] == f"search, risk {risk:g}"].iloc[0]
            promised, kept = (row[column] - random[column].mean() for column in ("change", "true"))
            found.append(
                {
                    "set": name,
                    "question": f"{goal.replace('_', ' ')}, {of}",
                    "risk": f"{risk:g}",
                    "predicted": row["change"],
                    "verdict": row["verdict"],
                    "elsewhere": row["elsewhere"],
                    "true": row["true"],
                    "in its band": "yes" if row["low"] <= row["true"] <= row["high"] else "no",
                    "random, predicted": random["change"].mean(),
                    "random, true": random["true"].mean(),
                    "best of random": random["true"].min(),
                    "beats": f"{(random['true'] > row['true']).sum()} of {len(random)}",
                    "share kept": kept / promised,
                }
            )
    return pd.DataFrame(found)


def figure(table: pd.DataFrame) -> plt.Figure:
    """Predicted against true changes, a panel a question."""
    parts = list(table.groupby(["set", "goal", "of"], sort=False))
    shown, axes = plt.subplots(1, len(parts), figsize=(3.1 * len(parts), 3.3), layout="constrained")
    for axis, ((name, goal, of), part) in zip(axes, parts, strict=True):
        for start, colour, mark in (("random", "0.5", "o"), ("search, risk 0", "C0", "*"),
                                    ("search, risk 1", "C1", "P")):  # fmt: skip
            some = part[part["choice"].str.startswith(start)]
            label = "random choices" if start == "random" else start
            axis.scatter(some["change"], some["true"], c=colour, marker=mark, s=70 if mark != "o" else 20,
                         label=label, zorder=3)  # fmt: skip
        edges = [part[["change", "true"]].to_numpy().min(), part[["change", "true"]].to_numpy().max()]
        axis.plot(edges, edges, c="0.8", lw=1)
        axis.locator_params(axis="x", nbins=3)
        axis.set(
            title=f"{name}\n{goal.replace('_', ' ')}, loss of {of}", xlabel="predicted change of the loss"
        )
    axes[0].set_ylabel("change after retraining")
    axes[0].legend(frameon=False, fontsize=8)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=Path, metavar="DATA")
    options = parser.parse_args()
    file = RESULTS / "search.csv"
    if options.measure:
        os.chdir(options.measure)  # where the sets' configurations find copa.jsonl
        measure(file)
    table = pd.read_csv(file)
    text = summary(table).to_markdown(index=False, floatfmt=".4f")
    note = (
        "Changes of the mean loss after the last step; negative is better. `elsewhere`: as a simulator fitted"
        " to nine other runs predicts. `share kept`: how much better than the mean random choice it truly is,"
        " as a share of how much better it was predicted to be."
        "\n\nMade by `python analysis/search.py --measure DATA`."
    )
    (RESULTS / "search.md").write_text(f"{text}\n\n{note}\n", encoding="utf-8")
    shown = figure(table)
    shown.savefig(RESULTS / "search.png", dpi=120)
    shown.savefig(RESULTS / "search.pdf", metadata={"CreationDate": None})
    print(text)


if __name__ == "__main__":
    main()
