"""Folders a person opens: tables as markdown and CSV, figures as PNG."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from simfluence import plots
from simfluence.evaluation import Evaluation, table, to_markdown


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


def write_what_if(changes: pd.DataFrame, folder: str | Path) -> None:
    """what_if.csv and what_if.png."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    changes.to_csv(folder / "what_if.csv", index=False)
    plots.predicted_changes(changes).savefig(folder / "what_if.png", dpi=120)
