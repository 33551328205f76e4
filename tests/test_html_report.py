"""One HTML file that holds all that it shows, and escapes it."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from simfluence import Edit, LinearSimulator, RunSet, __version__, fit, html_report, report, what_if
from simfluence.attribution import InfluenceScores
from simfluence.html_report import About, Section, made_by, write_report

EVIL = '<script>alert("&")</script>'
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags, texts and attributes of a page; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(text.strip())


def drawn() -> Figure:
    figure = Figure()
    figure.subplots().plot([1, 2])
    return figure


def test_everything_is_shown_and_escaped(tmp_path: Path) -> None:
    table = pd.DataFrame({EVIL: [EVIL, "sure"], "loss": [-1.23456, np.nan], "n": [3, 4]})
    file = write_report(
        tmp_path / "new",
        EVIL,
        About(EVIL + "?", {EVIL: EVIL}, {EVIL: EVIL}),
        [Section(EVIL, EVIL, drawn(), table, decimals=2)],
        verdict="sure",
        reasons=[EVIL],
        notes=[EVIL],
    )
    page = Page(file.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.texts.count(EVIL) == 12
    assert {"−1.23", "–", "3", "sure"} <= set(page.texts)


def test_it_needs_no_network_and_is_the_same_every_time(tmp_path: Path) -> None:
    texts = []
    for folder in ("a", "b"):
        sections = [Section("A figure", figure=drawn())]
        texts.append(write_report(tmp_path / folder, "A title", About(), sections).read_text("utf-8"))
    assert texts[0] == texts[1]
    page = Page(texts[0])
    (image,) = [value for name, value in page.attributes if name == "src"]
    assert image is not None
    assert b"<svg" in base64.b64decode(image.removeprefix("data:image/svg+xml;base64,"))
    assert not [value for name, value in page.attributes if name == "href" or "http" in (value or "")]
    assert "url(" not in texts[0]
    assert "@import" not in texts[0]
    assert "Verdict" not in page.texts  # there is none
    assert "How this was made" not in page.texts


def test_an_index_is_a_column_unless_it_only_numbers_the_rows() -> None:
    named = pd.DataFrame({"a": [1.0]}, index=pd.Index(["x"], name="group"))
    assert html_report._cells(named, 1)["headers"] == ["group", "a"]
    assert html_report._cells(named.reset_index(), 1)["headers"] == ["group", "a"]
    assert html_report._cells(named, 1)["numeric"] == [False, True]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["edit.groups=['which','what']"], "simfluence whatif edit.groups=[which,what]"),
        (["edit.shares='30% code'"], "simfluence whatif 'edit.shares=30% code'"),
        (["path=runs/a-b", "level=null"], "simfluence whatif path=runs/a-b level=null"),
    ],
)
def test_the_command_can_be_typed_again(
    monkeypatch: pytest.MonkeyPatch, options: list[str], shown: str
) -> None:
    monkeypatch.setattr("sys.argv", ["simfluence whatif", *options])
    assert html_report.command_line() == shown


def test_what_if_evaluate_and_attribute_write_one_each(runs: RunSet, tmp_path: Path) -> None:
    fitted = fit(runs, LinearSimulator(penalty=0.1))
    answer = what_if(fitted, runs[7], Edit("remove", ids=["3"]), train=runs.train, test=runs.test)
    about = About("What would it have learnt?", {"run": "run-007"}, made_by(runs, runs[7]))
    report.write_what_if(answer, tmp_path / "w", about)
    page = Page((tmp_path / "w" / "report.html").read_text("utf-8"))
    assert about.question in page.texts
    assert answer.trust.verdict in page.texts
    assert set(answer.trust.reasons) <= set(page.texts)
    assert f"{answer.groups.loc['all', 'change']:.4f}".replace("-", "−") in page.texts
    assert {__version__, f"run-007, fingerprint {runs[7].fingerprint}"} <= set(page.texts)
    assert page.tags.count("img") == 2
    scores = InfluenceScores(np.random.default_rng(0).normal(size=(12, 4)), "mine")
    texts = [f"text {EVIL} {i}" for i in range(12)], [f"asked {EVIL} {z}" for z in range(4)]
    report.write_attribution(scores, tmp_path / "a", runs.train.ids, runs.test.ids, texts, [2], 3)
    page = Page((tmp_path / "a" / "report.html").read_text("utf-8"))
    best = int(np.argmax(scores.scores[:, 2]))
    assert {f"{scores.scores[best, 2]:+.3g}", f"text {EVIL} {best}", f"2: asked {EVIL} 2"} <= set(page.texts)
    assert "script" not in page.tags


def test_tables_are_written_as_markdown_csv_and_latex(runs: RunSet, tmp_path: Path) -> None:
    fitted = fit(runs, LinearSimulator(penalty=0.1))
    answer = what_if(fitted, runs[7], Edit("remove", ids=["3"]), train=runs.train, test=runs.test)
    report.write_what_if(answer, tmp_path)
    change = f"{answer.groups.loc['all', 'change']:.4f}"
    for ending in ("md", "csv", "tex"):
        assert change in (tmp_path / f"by_group.{ending}").read_text("utf-8")
    for figure in ("what_if", "curves"):
        pdf = (tmp_path / f"{figure}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert not re.search(rb"/CreationDate", pdf)
        assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_long_tables_are_cut_to_the_largest_changes(runs: RunSet, tmp_path: Path) -> None:
    fitted = fit(runs, LinearSimulator(penalty=0.1))
    answer = what_if(fitted, runs[7], Edit("remove", ids=["3"]), train=runs.train, test=runs.test)
    changes = pd.concat([answer.changes] * 20, ignore_index=True)
    changes = changes.assign(id=[f"z{i}" for i in range(80)], change=np.linspace(-1, 1, 80))
    before, after = (np.tile(losses, 20) for losses in (answer.before, answer.after))
    many = dataclasses.replace(answer, changes=changes, before=before, after=after)
    report.write_what_if(many, tmp_path)
    texts = Page((tmp_path / "report.html").read_text("utf-8")).texts
    assert [text for text in texts if re.fullmatch(r"z\d+", text)] == [
        f"z{i}" for i in [*range(20), *range(60, 80)]
    ]
    assert pd.read_csv(tmp_path / "what_if.csv").shape[0] == 80
