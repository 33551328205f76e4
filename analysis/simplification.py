"""Skill of ``auto`` before and after it became a few fixed candidates: results/simplification.md.

    python analysis/simplification.py

Reads results/simulators.csv and splits.csv (which ``simulators.py`` and ``splits.py`` make), and for the
state before, commit d8cb4c7, results/simulators_before.csv and the rows "…, before" of splits.csv.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
SETS = {
    "openbookqa-minilm": "OpenBookQA",
    "copa-minilm": "COPA",
    "rte-minilm": "RTE",
    "facts-minilm": "facts",
    "copa-minilm-high-rate": "COPA 3e-4",
}
SIMULATORS = ("auto", "auto, scores", "auto, Adam's scores")
DYNAMICS = ("scores, dynamics", "Adam's scores, dynamics")
SIZES = (1, 8, 20)


def skills() -> pd.DataFrame:
    """A row a set, number of training runs and simulator: before, after, change."""
    keys = ["set", "training runs"]
    files = [RESULTS / "simulators_before.csv", RESULTS / "simulators.csv"]
    frame = pd.concat([pd.read_csv(file) for file in files], ignore_index=True)
    frame = frame[frame["metric"] == "skill"]
    both = paired(frame, keys, "mean").set_index([*keys, "simulator"])
    sizes = sorted(frame["training runs"].unique())
    wanted = pd.MultiIndex.from_product([SETS, sizes, SIMULATORS], names=[*keys, "simulator"])
    return both.reindex(wanted).reset_index()


def on_splits() -> pd.DataFrame:
    """The same a simulator and split of the high rate."""
    frame = pd.read_csv(RESULTS / "splits.csv")
    frame = frame[(frame["set"] == "copa-minilm-high-rate") & (frame["training runs"] == 20)]
    return paired(frame, ["split"], "skill")


def paired(frame: pd.DataFrame, keys: list[str], values: str) -> pd.DataFrame:
    """A row where both were measured, from rows whose simulator is "…, before" and those of the same name."""
    old = frame["simulator"].str.endswith(", before")
    before = frame[old].assign(simulator=frame.loc[old, "simulator"].str.removesuffix(", before"))
    both = before.merge(frame[~old], on=[*keys, "simulator"], suffixes=("_before", "_after"))
    both = both.rename(columns={f"{values}_before": "before", f"{values}_after": "after"})
    both = both[[*keys, "simulator", "before", "after"]]
    return both.assign(change=both["after"] - both["before"])


def to_markdown(rows: pd.DataFrame, keys: list[str]) -> str:
    """before → after, a column a simulator."""
    cells = [f"{row.before:.3f} → {row.after:.3f}" for row in rows.itertuples()]
    names = [name for name in (*SIMULATORS, *DYNAMICS) if name in set(rows["simulator"])]
    table = rows.assign(cell=cells).pivot_table(
        index=keys, columns="simulator", values="cell", aggfunc="first", sort=False
    )
    return str(table[names].reset_index().to_markdown(index=False))


def extremes(rows: pd.DataFrame) -> str:
    """The largest loss and gain, and how many are beyond .01."""

    def where(row: pd.Series) -> str:
        return f"{row['change']:+.3f} ({row['simulator']}, {SETS[row['set']]}, runs: {row['training runs']})"

    worst, best = (rows.loc[at] for at in (rows["change"].idxmin(), rows["change"].idxmax()))
    return (
        f"the largest loss is {where(worst)}, the largest gain {where(best)}. Of {len(rows)} figures"
        f" {(rows['change'] < -0.01).sum()} fell by more than .01 and {(rows['change'] > 0.01).sum()} rose by"
        " more than .01."
    )


def main() -> None:
    """Write the tables."""
    rows, splits = skills(), on_splits()
    order = [*SIMULATORS, *DYNAMICS]
    means = splits.groupby("simulator").agg(
        before=("before", "mean"),
        after=("after", "mean"),
        change=("change", "mean"),
        error=("change", "sem"),
        least=("change", "min"),
        most=("change", "max"),
    )
    means = means.rename(
        columns={"error": "its standard error", "least": "worst split", "most": "best split"}
    )
    shown = rows.assign(set=rows["set"].map(SETS))
    fell = shown[shown["change"] < -0.01].sort_values("change")
    text = f"""# Skill before and after simplification

Made by `python analysis/simplification.py` from what `python analysis/simulators.py` and `python
analysis/splits.py copa-minilm-high-rate` measured. Before: commit d8cb4c7, which searched over settings.
After: three fixed candidates. "scores" are gradient dot products at the initial weights, "Adam's scores"
those in Adam's metric. Seconds to fit, of both versions on the same machine, are in `../benchmarks/fit.md`.

## The last ten runs of each set, the first ones fitted

Skill, before → after.

{to_markdown(shown[shown["training runs"].isin(SIZES)], ["set", "training runs"])}

Of all numbers of runs, 1 to 22: {extremes(rows)} Those that fell by more than .01:

{fell.to_markdown(index=False, floatfmt=".3f")}

## Random splits of COPA 3e-4, 20 runs fitted, twelve others

Skill, before → after, split by split, and the means of these.

{to_markdown(splits, ["split"])}

{means.loc[order].reset_index().to_markdown(index=False, floatfmt=".3f")}
"""
    (RESULTS / "simplification.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
