"""Folders a person opens: tables as markdown and CSV, figures as PNG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from simfluence import plots
from simfluence.answer import WhatIf
from simfluence.attribution import InfluenceScores, LayerTokenScores, sparsity
from simfluence.evaluation import Evaluation, table, to_markdown
from simfluence.runs import strict_json


def write_evaluation(evaluation: Evaluation, folder: str | Path) -> str:
    """table.md, table.csv, scores.csv (every score), loss_curves.png, error_by_step.png.

    Returns the table as markdown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    markdown = to_markdown(evaluation.scores)
    (folder / "table.md").write_text(markdown, encoding="utf-8")
    table(evaluation.scores).to_csv(folder / "table.csv")
    evaluation.scores.to_csv(folder / "scores.csv", index=False)
    plots.loss_curves(evaluation).savefig(folder / "loss_curves.png", dpi=120)
    plots.error_by_step(evaluation).savefig(folder / "error_by_step.png", dpi=120)
    return markdown


def write_what_if(answer: WhatIf, folder: str | Path) -> None:
    """what_if.md (as printed, with its notes), what_if.json (``answer.summary()``), what_if.csv (every test
    example) and what_if.png.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "what_if.md").write_text(f"{answer}\n", encoding="utf-8")
    (folder / "what_if.json").write_text(strict_json.dumps(answer.summary()), encoding="utf-8")
    answer.changes.to_csv(folder / "what_if.csv", index=False)
    plots.predicted_changes(answer.changes).savefig(folder / "what_if.png", dpi=120)


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
) -> str:
    """scores.safetensors, sparsity.csv and .png, and a card of chosen test examples, card.md and .html.

    train, test : ids. texts : of the training and the test examples, if the card may show them.
    shown : the test examples whose proponents and opponents are listed, ``top`` of each.
    Of scores at several steps, the file holds each; all else is of their mean.

    Returns the card as markdown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scores.save(folder / "scores.safetensors")
    steps, scores = scores.steps, scores.mean()
    concentrated = sparsity(scores)
    concentrated.assign(test_example=test).to_csv(folder / "sparsity.csv", index=False)
    plots.influence_tails(scores, concentrated).savefig(folder / "sparsity.png", dpi=120)
    tables = [(z, _strongest(scores, z, top, train, texts)) for z in shown]
    about = _about(scores, float(concentrated["share"].mean()))
    about += [f"the mean over scores after steps {', '.join(map(str, steps))}"] if steps else []
    markdown, page = [f"# {scores.method}", "", *(f"- {line}" for line in about)], []
    page += [f"<h1>{html.escape(scores.method)}</h1><ul>"]
    page += [*(f"<li>{html.escape(line)}</li>" for line in about), "</ul>"]
    for z, frame in tables:
        said = f": {texts[1][z]}" if texts else ""
        markdown += ["", f"## {test[z]}{said}", "", frame.to_markdown(index=False, floatfmt="+.3g")]
        page += [
            f"<h2>{html.escape(test[z] + said)}</h2>",
            frame.to_html(index=False, float_format="{:+.3g}".format),
        ]
    head = (
        '<!doctype html><meta charset="utf-8"><title>attribution</title><style>body{font-family:sans-serif}'
    )
    page = [head + "td,th{padding:.2em .6em;text-align:left}</style>", *page]
    (folder / "card.md").write_text("\n".join(markdown) + "\n", encoding="utf-8")
    (folder / "card.html").write_text("\n".join(page) + "\n", encoding="utf-8")
    return "\n".join(markdown)


def write_heat_map(
    parts: LayerTokenScores, tokens: Sequence[Sequence[str]], titles: Sequence[str], folder: str | Path
) -> None:
    """layers_and_tokens.png and .csv of scores for one test example.

    tokens : those of every training example, in words. titles : one a training example.
    """
    folder, frames = Path(folder), []
    for i, (words, title) in enumerate(zip(tokens, titles, strict=True)):
        by_token = parts.tokens[:, i, 0, : len(words)]
        frame = pd.DataFrame(by_token, index=list(parts.blocks), columns=list(words))
        frames.append(frame.assign(**{"(pooled)": parts.whole[:, i, 0]}).rename_axis(columns=title))
    plots.layers_and_tokens(frames).savefig(folder / "layers_and_tokens.png", dpi=120)
    pd.concat(dict(zip(titles, (frame.T for frame in frames), strict=True)), names=["pair", "token"]).to_csv(
        folder / "layers_and_tokens.csv"
    )


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
