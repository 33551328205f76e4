"""Reports that people show others: one HTML file each, which holds all that it shows.

Such a file needs no network and no other file, follows the reader's choice of light or dark, and can be read
on a phone and printed. Figures are embedded as SVG. All texts are escaped.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simfluence import __version__
from simfluence.runs import Run, RunSet

FILE = "report.html"


@dataclass(frozen=True)
class Section:
    """A part of a report: a heading, a sentence below it, a figure, a table. What is not given is left out.

    decimals : of the numbers in the table.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    decimals: int = 4


@dataclass(frozen=True)
class About:
    """What a reader needs to know of an answer, beside the answer.

    question : in words. settings : what was asked of what, by name. made : how it was made, by name
    (:func:`made_by`).
    """

    question: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)


def made_by(runs: RunSet, run: Run | None = None) -> dict[str, str]:
    """How an answer of the command line was made: the command, the version, fingerprints of what it is of."""
    found = {
        "command": command_line(),
        "simfluence": __version__,
        "training examples": f"{len(runs.train)}, fingerprint {runs.train.fingerprint}",
        "test examples": f"{len(runs.test)}, fingerprint {runs.test.fingerprint}",
    }
    return found if run is None else {**found, "run": f"{run.id}, fingerprint {run.fingerprint}"}


def command_line() -> str:
    """The command as it can be typed again (the command line puts its texts into quotes, for hydra)."""
    name, *options = sys.argv
    typed = [option if "\\" in option else option.replace("'", "") for option in options]
    return " ".join([name, *(o if re.fullmatch(r"[\w\[\],=.+/:~-]+", o) else shlex.quote(o) for o in typed)])


def write_report(
    folder: str | Path,
    title: str,
    about: About,
    sections: Sequence[Section],
    *,
    verdict: str = "",
    reasons: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write report.html into a folder, which is made if it is not there.

    Parameters
    ----------
    title, about, sections : what the report shows, from top to bottom.
    verdict, reasons : in a word, and what it rests on, a sentence each. notes : below the sections.

    Returns the file's path.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = [
        {
            "title": section.title,
            "text": section.text,
            "figure": None if section.figure is None else _as_svg(section.figure),
            "table": None if section.table is None else _cells(section.table, section.decimals),
        }
        for section in sections
    ]
    texts = {"title": title, "about": about, "sections": shown, "notes": notes}
    page = _template().render(**texts, verdict=verdict, reasons=reasons, version=__version__)
    (folder / FILE).write_text(page, encoding="utf-8")
    return folder / FILE


def _template() -> jinja2.Template:
    source = resources.files("simfluence").joinpath("html_report.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def _as_svg(figure: Figure) -> str:
    """The figure as a data address; the same figure is the same text every time."""
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "simfluence"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()


def _cells(table: pd.DataFrame, decimals: int) -> dict[str, Any]:
    """The headers of a table and its rows of texts; which columns are numbers. The index is a column, unless
    it only numbers the rows.
    """
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index(names=str(table.index.name or ""))
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in table.columns]

    def text(value: Any) -> str:
        if isinstance(value, float | np.floating):
            return "–" if not np.isfinite(value) else f"{value:.{decimals}f}".replace("-", "−")
        return str(value)

    rows = [[text(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return {"headers": [str(column) for column in table.columns], "rows": rows, "numeric": numeric}
