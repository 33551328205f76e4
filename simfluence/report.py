"""Folders a person opens: a report in HTML, tables as Markdown, CSV and LaTeX, figures as PNG and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from simfluence import plots
from simfluence.answer import WhatIf
from simfluence.attribution import InfluenceScores, LayerTokenScores, sparsity
from simfluence.evaluation import Benchmark, Evaluation, paired_differences, table
from simfluence.evaluation.comparison import FEWEST_RUNS
from simfluence.evaluation.standards import SubsetBank, lds, mean_with_interval
from simfluence.evaluation.tables import COLUMNS, NOTE, WHY_OFF_SCALE, off_scale, write_table
from simfluence.html_report import About, Section, write_report
from simfluence.runs import storage, strict_json

MOST_ROWS = 40
"""Of a report's tables of examples; the files beside it have them all."""


def write_evaluation(evaluation: Evaluation, folder: str | Path, about: About | None = None) -> str:
    """report.html; table (.md, .csv, .tex); scores.csv (every score); the figures loss_curves and
    error_by_step (.png, .pdf).

    Returns the table as markdown.
    """
    folder, scores = Path(folder), evaluation.scores
    notes = [NOTE, *([WHY_OFF_SCALE] if off_scale(scores) else [])]
    markdown = write_table(table(scores), folder, "table", *notes)
    scores.to_csv(folder / "scores.csv", index=False)
    curves, errors = plots.loss_curves(evaluation), plots.error_by_step(evaluation)
    plots.save(curves, folder, "loss_curves")
    plots.save(errors, folder, "error_by_step")
    held_out = ", ".join(evaluation.runs.ids)
    sections = [
        Section("How well held-out runs are predicted", f"Held-out runs: {held_out}.", table=table(scores)),
        Section("Error by step", figure=errors),
        Section("Recorded and simulated losses", "The test examples that changed most.", figure=curves),
    ]
    write_report(folder, "Simulators on held-out runs", about or About(), sections, notes=notes)
    return markdown


def write_benchmark(
    found: Benchmark, costs: Benchmark, folder: str | Path, against: str, seconds: float
) -> None:
    """main (every method), comparison (with one of them) and needs (what simulators need), each as .md, .csv
    and .tex; the figure cost.png and .pdf. No comparison is made over fewer than three test runs.

    found, costs : the cells of the first two tables, and of the third. seconds : what training again takes.
    """
    write_table(found.table(), folder, "main", NOTE)
    if found.of_cells["test_runs"].min() >= FEWEST_RUNS:
        note = f"Each method less {against}. {COMPARISON_NOTE}"
        write_table(compared(found, against), folder, "comparison", note)
    write_table(needed(costs, seconds), folder, "needs")
    plots.save(plots.skill_and_cost(costs, seconds), folder, "cost")


COMPARISON_NOTE = (
    "Mean difference over the same test runs [95% interval, robust to what test examples of a run share];"
    " p adjusted by Holm's method."
)


def compared(found: Benchmark, against: str) -> pd.DataFrame:
    """One row a method, how it differs from another in all-steps MSE and final-step ρ."""
    columns = {}
    for metric in ("mse", "final_spearman"):
        frame = paired_differences(found.of_runs, against, metric).set_index("method")
        edges = frame[["difference", "low", "high"]].to_numpy(float)
        columns[f"{COLUMNS[metric]}, difference"] = [
            "–" if np.isnan(mean) else f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]" for mean, low, high in edges
        ]
        columns[f"{COLUMNS[metric]}, p"] = ["–" if np.isnan(p) else f"{p:.2g}" for p in frame["p_holm"]]
        columns[f"{COLUMNS[metric]}, better"] = list(frame["better"])
    return pd.DataFrame(columns, index=frame.index)


def needed(costs: Benchmark, seconds: float) -> pd.DataFrame:
    """One row a simulator and what it is given: skill, final-step ρ, and seconds beside those of training."""
    shown = costs.table()[["skill", COLUMNS["final_spearman"], "caution"]]
    cells = costs.of_cells
    shown.insert(0, "runs", cells["training_runs"].astype(int))
    shown.insert(3, "seconds to fit", cells["fit_seconds"].map("{:.2g}".format))
    shown.insert(4, "to answer", cells["answer_seconds"].map("{:.2g}".format))
    shown.insert(5, "to train again", "–" if np.isnan(seconds) else f"{seconds:.3g}")
    return shown


def write_lds(bank: Path, files: Sequence[str], folder: str | Path) -> str:
    """lds-… (.md, .csv, .tex): how files of scores order the retrained subsets of one bank. The markdown.

    Raises RunDataError if scores are of other examples than the bank.
    """
    truth = SubsetBank.load(bank).complete()
    rows = {}
    for file in files:
        scores = InfluenceScores.load(file).mean()
        scores.tables.check(truth.tables, f"the scores of {file}", "the subsets")
        found = mean_with_interval(lds(scores.scores.astype(np.float64), truth.kept, truth.mean_losses()))
        interval = "" if np.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"  # of too few
        cell = f"{found.mean:.2f}{interval}"
        rows[f"{scores.method} ({Path(file).name})"] = {"LDS": cell, "test examples": str(found.n)}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("scores")
    note = f"LDS [95% interval over test examples] on {truth.describe()}."
    return write_table(frame, folder, bank.stem.replace("subsets", "lds"), note)


def seconds_of_a_run(path: str | Path) -> float:
    """The median of what recording a run took; NaN if the set does not say."""
    taken = [
        storage.read_manifest(Path(path) / run_id).get("seconds") for run_id in storage.run_ids(Path(path))
    ]
    known = [float(value) for value in taken if value is not None]
    return float(pd.Series(known, dtype=float).median())


def write_what_if(answer: WhatIf, folder: str | Path, about: About | None = None) -> None:
    """report.html; what_if.md (as printed, with its notes), what_if.json (``answer.summary()``), what_if.csv
    (every test example); by_group (.md, .csv, .tex); the figures what_if (changes) and curves (.png, .pdf).
    """
    folder = Path(folder)
    groups = answer.groups.rename_axis("test examples")
    numbers = groups.select_dtypes("float").columns
    cells = groups.assign(**{str(name): groups[name].map("{:.4f}".format) for name in numbers})
    write_table(cells, folder, "by_group")
    (folder / "what_if.md").write_text(f"{answer}\n", encoding="utf-8")
    (folder / "what_if.json").write_text(strict_json.dumps(answer.summary()), encoding="utf-8")
    answer.changes.to_csv(folder / "what_if.csv", index=False)
    changes, curves = plots.predicted_changes(answer.changes, answer.level), plots.what_if_curves(answer)
    plots.save(changes, folder, "what_if")
    plots.save(curves, folder, "curves")
    unit = "Losses are in the unit that was recorded; a negative change means learnt better."
    band = "" if answer.level is None else f" low and high: the {answer.level:.0%} band of the change."
    title, which = "Every test example", ""
    ordered = answer.changes.sort_values("change", kind="stable").reset_index(drop=True)
    if len(ordered) > MOST_ROWS:
        ordered = pd.concat([ordered.head(MOST_ROWS // 2), ordered.tail(MOST_ROWS // 2)], ignore_index=True)
        which = f"The {MOST_ROWS // 2} that change most in either direction; what_if.csv has all."
    sections = [
        Section("Groups of test examples", unit + band, curves, groups),
        Section(title, which, changes, ordered),
    ]
    write_report(
        folder,
        "What if",
        about or About(),
        sections,
        verdict=answer.trust.verdict,
        reasons=answer.trust.reasons,
        notes=[*answer.explained(), *answer.notes],
    )


def with_run(scores: InfluenceScores, run_set: str, run_id: str) -> InfluenceScores:
    """The same scores, which say what recording they are of."""
    return replace(scores, provenance={"runs": run_set, "run": run_id, **scores.provenance})


def write_attribution(
    scores: InfluenceScores,
    folder: str | Path,
    train: Sequence[str],
    test: Sequence[str],
    texts: tuple[Sequence[str], Sequence[str]] | None,
    shown: Sequence[int],
    top: int = 5,
    question: About | None = None,
    more: Sequence[Section] = (),
) -> str:
    """report.html; scores.safetensors; sparsity.csv and its figure (.png, .pdf); card.md, the proponents and
    opponents of chosen test examples, as they stand in the report too.

    train, test : ids. texts : of the training and the test examples, if the card may show them.
    shown : the test examples whose proponents and opponents are listed, ``top`` of each.
    more : further sections of the report, before its last one.
    Of scores at several steps, the file holds each; all else is of their mean.

    Returns the card as markdown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scores.save(folder / "scores.safetensors")
    steps, scores = scores.steps, scores.mean()
    concentrated = sparsity(scores)
    concentrated.assign(test_example=test).to_csv(folder / "sparsity.csv", index=False)
    tails = plots.influence_tails(scores, concentrated)
    plots.save(tails, folder, "sparsity")
    about = _about(scores, float(concentrated["share"].mean()))
    about += [f"the mean over scores after steps {', '.join(map(str, steps))}"] if steps else []
    markdown = [f"# {scores.method}", "", *(f"- {line}" for line in about)]
    sections = []
    for z in shown:
        frame = _strongest(scores, z, top, train, texts)
        said = f": {texts[1][z]}" if texts else ""
        markdown += ["", f"## {test[z]}{said}", "", frame.to_markdown(index=False, floatfmt="+.3g")]
        cells = frame.assign(score=[f"{value:+.3g}" for value in frame["score"]])
        sections.append(Section(f"{test[z]}{said}", table=cells))
    sections += [*more, Section("How concentrated the scores are", figure=tails)]
    title = f"Attribution by {scores.method}"
    write_report(folder, title, question or About(), sections, notes=about)
    (folder / "card.md").write_text("\n".join(markdown) + "\n", encoding="utf-8")
    return "\n".join(markdown)


def write_heat_map(
    parts: LayerTokenScores, tokens: Sequence[Sequence[str]], titles: Sequence[str], folder: str | Path
) -> Section:
    """layers_and_tokens (.png, .pdf, .csv) of scores for one test example.

    tokens : those of every training example, in words. titles : one a training example.

    Returns the report's section.
    """
    folder, frames = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for i, (words, title) in enumerate(zip(tokens, titles, strict=True)):
        by_token = parts.tokens[:, i, 0, : len(words)]
        frame = pd.DataFrame(by_token, index=list(parts.blocks), columns=list(words))
        frames.append(frame.assign(**{"(pooled)": parts.whole[:, i, 0]}).rename_axis(columns=title))
    figure = plots.layers_and_tokens(frames)
    plots.save(figure, folder, "layers_and_tokens")
    pd.concat(dict(zip(titles, (frame.T for frame in frames), strict=True)), names=["pair", "token"]).to_csv(
        folder / "layers_and_tokens.csv"
    )
    return Section("Layers and tokens", "Red: the token's part in this layer lowers the loss.", figure)


def _strongest(
    scores: InfluenceScores,
    z: int,
    top: int,
    train: Sequence[str],
    texts: tuple[Sequence[str], Sequence[str]] | None,
) -> pd.DataFrame:
    """One row an example: the strongest proponents, then the strongest opponents, the very strongest last."""
    positive = [i for i in scores.proponents(z, top) if scores.scores[i, z] > 0]
    negative = [i for i in scores.opponents(z, top) if scores.scores[i, z] < 0][::-1]
    chosen = [i for i in positive if i not in negative] + negative
    frame = pd.DataFrame(
        {"score": [float(scores.scores[i, z]) for i in chosen], "id": [train[i] for i in chosen]}
    )
    return frame.assign(text=[texts[0][i] for i in chosen]) if texts else frame


def _about(scores: InfluenceScores, top: float) -> list[str]:
    """What the scores are, a line each."""
    train, test = scores.scores.shape
    lines = [
        f"{train} training x {test} test examples; positive: training on it lowers the test example's loss"
        + (f"; units {scores.units}" if scores.units else ""),
        f"share of the total positive influence in the top 1%: {top:.0%} (mean over test examples)",
    ]
    if scores.covers:
        part = scores.coverage is not None and scores.coverage < 1
        share = f", {scores.coverage:.2%} of the numbers that are trained" if part else ""
        lines.append(
            f"covers {len(scores.covers)} parameters{share}: {', '.join(scores.covers[:4])}"
            + (", …" * (len(scores.covers) > 4))
        )
    for key, value in scores.provenance.items():
        if isinstance(value, str | int | float) or (isinstance(value, list) and len(str(value)) < 100):
            lines.append(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    return lines
