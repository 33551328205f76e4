"""Attribution's standards on banks of retrained subsets: table B2 of the benchmark, and its figure.

    python analysis/paper/standards.py --measure DATA    (the folder of copa.jsonl)
    python analysis/paper/standards.py                   (from the committed raw files, in seconds)

Made-up facts and COPA, on MiniLM with its last two layers trained. What is measured, and in what order, is in
standards_measuring.py; an interrupted call goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from protocol import RESULTS
from shown import write_latex
from standards_rows import (
    BETWEEN_SEEDS,
    CEILING,
    OTHER_ORDERS,
    RANDOM_REMOVAL,
    SIMULATED,
    STATING,
    all_rows,
    unmeasured,
)
from standards_tasks import METHODS, NAMES, SHARES, SIMULATOR

mpl.use("Agg")
import matplotlib.pyplot as plt

ORDER = [*METHODS, SIMULATOR, SIMULATED, OTHER_ORDERS, STATING, BETWEEN_SEEDS, CEILING, RANDOM_REMOVAL]
SUBSETS = {("LDS", "halves"): "LDS, halves", ("LDS", "5 % left out"): "LDS, 5 % left out"}
SINGLE = {
    ("leave-one-out ρ", "single examples"): "leave-one-out ρ",
    ("tail-patch", "top 5"): "tail-patch, nats",
}
FOUND = {
    ("recall@5", "stating"): "recall@5",
    ("recall@10", "stating"): "recall@10",
    ("MRR", "stating"): "MRR",
}
REMOVED = {
    (standard, f"top {share:.0%}"): f"{name}, top {share:.0%}"
    for standard, name in (("loss rise", "rise, nats"), ("flips", "flips"))
    for share in SHARES
}
TITLES = ("Subsets and single examples", "The sentences that state a fact", "Removing what scores highest")
COLUMNS = (SUBSETS | SINGLE, FOUND, REMOVED)
SMALL = 0.02
"""Of what is smaller, four digits are shown."""
REASONS = {
    SIMULATED: "it predicts losses of subsets, and has no scores",
    OTHER_ORDERS: "it predicts losses of subsets, and has no scores",
    STATING: "it scores 1 what states the fact, and 0 the rest",
    BETWEEN_SEEDS: "it is of retrained losses, not of scores",
    CEILING: "it is of retrained losses, not of scores",
}
COMMAND = "Made by `python analysis/paper/standards.py` from what `--measure DATA` measured."


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="DATA")
    data = parser.parse_args().measure
    if data is not None:
        from standards_measuring import measure

        measure(data)
    rows = all_rows()
    if rows.empty:
        sys.exit("nothing is measured yet: python analysis/paper/standards.py --measure DATA")
    rows.to_csv(RESULTS / "standards.csv", index=False, float_format="%.5g")
    (RESULTS / "standards.md").write_text(markdown(rows))
    shown = [
        wide(rows[rows["task"] == task], columns) for task in rows["task"].unique() for columns in COLUMNS
    ]
    write_latex("standards", [frame.reset_index() for frame in shown if frame.size])
    figure(rows)


# ------------------------------------------------------------------------------------------------ tables


def markdown(rows: pd.DataFrame) -> str:
    """Every table with what it was measured on, and what its cells are."""
    parts = ["# Attribution's standards", COMMAND, ABOUT]
    for task, of_task in rows.groupby("task", sort=False):
        parts.append(f"## {task}")
        for title, columns in zip(TITLES, COLUMNS, strict=True):
            some = of_task[pd.MultiIndex.from_frame(of_task[["standard", "setting"]]).isin(list(columns))]
            if len(some):
                table = wide(some, columns).to_markdown(disable_numparse=True)
                parts += [f"### {title}", table, measured_on(some, columns)]
        planted = of_task[of_task["standard"].str.startswith("AUC")]
        if len(planted):
            parts += ["### Planted examples: area under the curve", areas(planted)]
    if open_ends := unmeasured():
        parts += [UNMEASURED, "\n".join(f"- {line}." for line in open_ends)]
    return "\n\n".join(parts) + "\n"


def wide(rows: pd.DataFrame, columns: dict[tuple[str, str], str]) -> pd.DataFrame:
    """A row a method, a column a standard."""
    found = {(row.method, row.standard, row.setting): cell(row) for row in rows.itertuples()}
    present = [method for method in ORDER if method in set(rows["method"])]
    there = [key for key in columns if any((method, *key) in found for method in present)]
    return pd.DataFrame(
        [[found.get((method, *key), "–") for key in there] for method in present],
        index=pd.Index([NAMES.get(method, method) for method in present], name="method"),
        columns=[columns[key] for key in there],
    )


def cell(row: object) -> str:
    """mean [low, high]; of too few test examples for an interval, how many there are."""
    mean, low, high, n = (getattr(row, name) for name in ("mean", "low", "high", "n"))
    if n == 0:
        return "all alike"
    digits = 2 if low != low or max(-low, high) >= SMALL else 4
    interval = f"[{low:.{digits}f}, {high:.{digits}f}]" if low == low else f"(n = {n})"
    return f"{mean:.{digits}f} {interval}"


def measured_on(rows: pd.DataFrame, columns: dict[tuple[str, str], str]) -> str:
    """For each column, what it was measured on, and the number of test examples."""
    lines = []
    for (standard, setting), name in columns.items():
        some = rows[(rows["standard"] == standard) & (rows["setting"] == setting)]
        if not len(some):
            continue
        counts = sorted({int(n) for n in some["n"] if n})
        tests = str(counts[-1]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lines.append(f"- {name}: {some['of'].iloc[0]}; {tests} test examples.")
    dashes = [method for method in REASONS if method in set(rows["method"])]
    lines += [f"- – for “{method}”: {REASONS[method]}." for method in dashes]
    return "\n".join(lines)


def areas(rows: pd.DataFrame) -> str:
    """AUC: a row a method and way of suspecting, [least, most] of the plantings."""
    lines = [
        {
            "planted": row.standard.removeprefix("AUC "),
            "method": NAMES.get(row.method, row.method),
            "suspicion": row.setting,
            "AUC": f"{row.mean:.2f}" + (f" [{row.low:.2f}, {row.high:.2f}]" if row.n > 1 else ""),
            "plantings": row.n,
            "of": row.of,
        }
        for row in rows.itertuples()
    ]
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


ABOUT = """\
A small model: MiniLM-L6 with its last two layers and its head trained (3.5M of 22.7M parameters), 200
training examples. Scores are of one run on all 200, in an order that no retraining has: at its last weights,
TracIn at 10 checkpoints. “auto” is the default simulator, fitted to 20 recorded runs (the other methods see
one): its scores are the simulated rises of final losses when an example is removed from a recorded run;
“simulating each subset” are its predictions for the very curricula that were retrained, whose order scores
do not know; “in other orders”, for the same subsets in orders of other seeds. “The stating sentences, as
known” counts how many of the five sentences that state the fact are kept, which no method knows.

Cells are means over test examples with 95 % bootstrap intervals over them; the intervals do not hold the
noise of the seeds. Subsets with the same seed have the same order of examples, with those left out dropped.
“One seed with another” is the correlation of retrained losses between seeds, and the ceiling what perfect
predictions would reach at that noise. A rise is of the loss over that after random removals of as many
examples (of random removals: over training on everything); flips are the share of the right answers that
turn wrong. A tail-patch is the fall of the loss in one step of the run's optimizer on the method's top 5.
Of planted examples, [least, most] are of the plantings."""


UNMEASURED = """\
## Not measured yet

For want of processor time; the command with `--measure` goes on where it was. Columns above that are missing,
or of few test examples, subsets or seeds, are so for that reason."""


# ------------------------------------------------------------------------------------------------ figure


def figure(rows: pd.DataFrame) -> None:
    """LDS bars with intervals, and removal curves."""
    mpl.rcParams["svg.hashsalt"] = "standards"
    removed = rows[(rows["standard"] == "loss rise") & (rows["task"] == "facts")]
    panels = 2 if len(removed) else 1
    drawn, axes = plt.subplots(1, panels, figsize=(5.5 * panels + 1, 4.6), squeeze=False)
    bars(axes[0, 0], rows[rows["standard"] == "LDS"])
    if len(removed):
        curves(axes[0, 1], removed)
    drawn.tight_layout()
    drawn.savefig(RESULTS / "standards.png", dpi=150, metadata={"Software": None})
    drawn.savefig(RESULTS / "standards.pdf", metadata={"CreationDate": None})
    plt.close(drawn)


def bars(axes: plt.Axes, rows: pd.DataFrame) -> None:
    """A bar a method, task and fraction."""
    kinds = list(dict.fromkeys(zip(rows["task"], rows["setting"], strict=True)))
    methods = [method for method in ORDER if method in set(rows["method"]) and method != BETWEEN_SEEDS]
    height = 0.8 / max(len(kinds), 1)
    for number, (task, setting) in enumerate(kinds):
        some = rows[(rows["task"] == task) & (rows["setting"] == setting)].set_index("method")
        some = some.loc[[method for method in methods if method in some.index and some.loc[method, "n"] > 0]]
        at = [methods.index(method) + (number - (len(kinds) - 1) / 2) * height for method in some.index]
        errors = [some["mean"] - some["low"], some["high"] - some["mean"]]
        label = f"{task}: {some['of'].iloc[0].split(': ', 1)[1]}"
        axes.barh(at, some["mean"], height, xerr=errors, label=label, error_kw={"lw": 0.8})
    axes.set_yticks(range(len(methods)), [NAMES.get(method, method) for method in methods])
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlabel("LDS: Spearman over subsets, mean over test examples (95 % interval)")
    axes.set_title("Do summed scores order retrained subsets?")
    axes.legend(fontsize=7, loc="upper right", bbox_to_anchor=(1, -0.13))


def curves(axes: plt.Axes, rows: pd.DataFrame) -> None:
    """The rise of the loss against the share removed, a line a method."""
    rows = rows.assign(share=[float(setting.split()[1].rstrip("%")) for setting in rows["setting"]])
    present = [method for method in ORDER if method in set(rows["method"])]
    for number, method in enumerate(present):
        some = rows[rows["method"] == method].sort_values("share")
        errors = [some["mean"] - some["low"], some["high"] - some["mean"]]
        name = f"{method}, over everything" if method == RANDOM_REMOVAL else NAMES[method]
        name += f" (n = {some['n'].min()})"
        at = some["share"] + 0.12 * (number - len(present) / 2)
        axes.errorbar(at, some["mean"], errors, marker="o", ms=4, lw=1.2, capsize=2, label=name)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks([100 * share for share in SHARES])
    axes.set_xlim(0, 100 * max(SHARES) + 1)
    axes.set_xlabel("training examples removed (%)")
    axes.set_ylabel("mean rise of test examples' loss (nats)")
    axes.set_title("Facts: removing the top, over random removals")
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
