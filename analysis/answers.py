"""What bands and verdicts of what-ifs are worth: against retraining.

    python analysis/answers.py [FOLDER] [--runs 1 3 8 12] [--only NAME ...] [--rows FILE] [--output FILE]

FOLDER is a bank of recorded regimes with retrained edits (see bank.py). ``auto`` is fitted to the first runs
of each regime, with bands, without scores and with those along one run, and asked about the edits through
``what_if``. Of the committed run sets the held-out runs serve as edits of each other: the curriculum of one
is asked of another, and its recorded losses are the truth.

There is one row a question and row of its answer (a test example, the mean of a group, or of all): what it
was, band, verdict and true change, in ``--rows`` (.csv, about 25 MB; an interrupted run continues where it
was). The summary, ``--output``, has, by kind of edit, by recording and by number of runs: the share of true
changes in the 90 % band, the width of the band over that around a new run's loss, how often it excludes
zero and how often the sign is right then; and how many answers got which verdict, and were right.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from bank import load, run_set
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from simfluence import AutoSimulator, PredictiveBands, what_if
from simfluence.curriculum import Curriculum
from simfluence.fitted import Fitted
from simfluence.runs import Run, RunSet

RESULTS = Path(__file__).parent / "results"
HOME = ("openbookqa-minilm", "copa-minilm", "rte-minilm", "facts-minilm", "copa-minilm-high-rate")
KEYS = ["recording", "scores", "runs"]
Question = tuple[str, Run, Curriculum, str, np.ndarray]
"""Kind of edit, base run, edited curriculum, schedule, true changes [test]."""


def bank_questions(regime: dict, runs: RunSet) -> Iterator[Question]:
    for edit in regime["edits"]:
        edited = Curriculum.from_batches(edit["batches"], len(runs.train))
        schedule = "keep" if edit["kind"].endswith("original-schedule") else "stretch"
        yield edit["kind"], runs[edit["base"]], edited, schedule, edit["true_change"].astype(np.float64)


def home_questions(runs: RunSet) -> Iterator[Question]:
    for base, other in itertools.permutations(runs[-10:], 2):
        true = other.loss[-1].astype(np.float64) - base.loss[-1]
        yield "another recorded run", base, other.curriculum, "stretch", true


def rows(fitted: Fitted, runs: RunSet, questions: Iterator[Question]) -> Iterator[dict]:
    """The rows of all questions of one fit."""
    assert fitted.bands is not None
    for number, (kind, base, edited, schedule, true) in enumerate(questions):
        answer = what_if(fitted, base, edited, train=runs.train, test=runs.test, schedule=schedule)
        skill = float(fitted.bands.skill_[min(len(edited), len(fitted.bands.skill_) - 1)])
        noise = fitted.bands.half_width(len(edited))
        about = {"question": number, "kind": kind, "skill": skill}
        single = answer.changes.assign(true=true, noise=noise)
        groups = answer.groups.assign(true=answer.groups["change"])
        for name in groups.index:
            mine = answer.changes["group"] == name if name != "all" else np.full(len(true), True)
            groups.loc[name, "true"] = true[np.asarray(mine)].mean()
        columns = ["change", "low", "high", "verdict", "true"]
        for _, row in single.iterrows():
            yield about | {"of": "example", "noise": row["noise"]} | row[columns].to_dict()
        for name, row in groups.iterrows():
            of = "all" if name == "all" else "group"
            yield about | {"of": of, "noise": np.nan} | row[columns].to_dict()


def recordings(
    folder: Path | None, only: list[str] | None
) -> Iterator[tuple[str, RunSet, list, dict | None]]:
    for name in HOME:
        if only is None or name in only:
            runs = RunSet.load(Path("runs") / name)
            scores = load_file(Path("runs") / name / "scores_adam.safetensors")["scores"].astype(np.float64)
            yield name, runs, [scores], None
    for file in sorted(folder.glob("*.npz")) if folder else []:
        if only is None or file.stem in only:
            regime = load(file)
            scores = list(regime["scores_along"].astype(np.float64)) if regime["scores"].size else []
            yield file.stem, run_set(regime), scores, regime


def rate(values: pd.Series) -> float:
    return float(values.mean()) if len(values) else np.nan


def summary(frame: pd.DataFrame) -> str:
    held = frame["true"].between(frame["low"], frame["high"])
    right = np.sign(frame["change"]) == np.sign(frame["true"])
    width = (frame["high"] - frame["low"]) / 2 / frame["noise"]
    frame = frame.assign(held=held, right=right, excludes=frame["verdict"] == "sure", width=width)
    parts = []

    def table(title: str, by: list[str], rows: pd.DataFrame) -> None:
        found = []
        for key, part in rows.groupby(by, sort=False):
            line = dict(zip(by, key, strict=True)) | {"answers": len(part), "in the band": rate(part["held"])}
            line |= {"width": part["width"].median(), "band excludes 0": rate(part["excludes"])}
            found.append(line | {"right sign then": rate(part.loc[part["excludes"], "right"])})
        parts.extend([f"# {title}", pd.DataFrame(found).to_markdown(index=False, floatfmt=".2f")])

    def verdicts(title: str, by: list[str], rows: pd.DataFrame) -> None:
        found = []
        for key, part in rows.groupby(by, sort=False):
            line = dict(zip(by, key, strict=True)) | {"answers": len(part)}
            for verdict in ("sure", "leaning", "unknown"):
                mine = part[part["verdict"] == verdict]
                line |= {verdict: rate(part["verdict"] == verdict), f"{verdict}, right": rate(mine["right"])}
            sure = part[part["verdict"] == "sure"]
            found.append(line | {"sure, in the band": rate(sure["held"])})
        parts.extend([f"# {title}", pd.DataFrame(found).to_markdown(index=False, floatfmt=".2f")])

    bank, home = (
        frame[frame["kind"] != "another recorded run"],
        frame[frame["kind"] == "another recorded run"],
    )
    if len(bank):
        table("The bank by kind of edit, 12 runs", ["of", "kind"], bank[bank["runs"] == 12])
        table("The bank by number of runs", ["of", "scores", "runs"], bank)
        table(
            "The bank by regime, all numbers of runs, test examples",
            ["recording"],
            bank[bank["of"] == "example"],
        )
    single = home[home["of"] == "example"]
    table("Committed sets, other runs as edits, test examples", ["recording", "scores", "runs"], single)
    skilled = np.where(
        frame["skill"] > 0.8, "above .8", np.where(frame["skill"] > 0.4, ".4 to .8", "below .4")
    )
    verdicts("Verdicts by skill", ["of", "skill"], frame.assign(skill=skilled).sort_values("skill"))
    verdicts("Verdicts by number of runs", ["of", "scores", "runs"], frame)
    return "\n\n".join(parts) + "\n"


def figure(frame: pd.DataFrame, file: Path) -> None:
    """Coverage by kind of edit, and how often the sign is right by verdict."""
    single = frame[frame["of"] == "example"]
    held = single["true"].between(single["low"], single["high"])
    right = np.sign(single["change"]) == np.sign(single["true"])
    single = single.assign(held=held, right=right)
    of_most = single[single["runs"] == single["runs"].max()]
    drawing = Figure(figsize=(11, 4.5), layout="constrained")
    left, middle = drawing.subplots(1, 2, width_ratios=[3, 2])
    coverage = of_most.groupby("kind")["held"].mean().sort_values()
    left.barh(coverage.index, coverage, color="tab:blue")
    left.axvline(0.9, color="black", linewidth=1)
    left.set(xlim=(0.5, 1), xlabel="share of true changes in the 90 % band", title="test examples, most runs")
    for place, (scores, part) in zip((-0.2, 0.2), single.groupby("scores"), strict=True):
        rates = part.groupby("verdict")["right"].mean().reindex(["sure", "leaning", "unknown"])
        middle.bar(np.arange(3) + place, rates, 0.4, label="with scores" if scores == "scores" else "without")
    middle.set_xticks(range(3), ["sure", "leaning", "unknown"])
    middle.set(ylim=(0.5, 1), ylabel="right sign", title="all numbers of runs")
    middle.legend()
    drawing.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 3, 8, 12])
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--rows", type=Path, default=Path("answers.csv"))
    parser.add_argument("--output", type=Path, default=RESULTS / "answers.md")
    options = parser.parse_args()
    seen = pd.read_csv(options.rows) if options.rows.exists() else None
    done = set() if seen is None else set(seen[KEYS].itertuples(index=False, name=None))
    for name, runs, given, regime in recordings(options.folder, options.only):
        for scores, count in itertools.product([None, given] if given else [None], options.runs):
            key = (name, "scores" if scores else "none", count)
            if key in done:
                continue
            bands = PredictiveBands(AutoSimulator(scores)).fit(runs[:count])
            fitted = Fitted(bands.simulator_, bands)
            questions = home_questions(runs) if regime is None else bank_questions(regime, runs)
            found = pd.DataFrame(rows(fitted, runs, questions)).round(5)
            found = found.assign(recording=name, scores=key[1], runs=count)
            new = not options.rows.exists()
            found.to_csv(options.rows, mode="a", header=new, index=False)
            print(*key, f"{found['true'].between(found['low'], found['high']).mean():.2f}", flush=True)
    frame = pd.read_csv(options.rows)
    text = summary(frame)
    options.output.write_text(text)
    figure(frame, options.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
