"""Paper-style tables from the long frame of scores.

The frames keep every number. Tables, and what is made of them (markdown, CSV), print none for a method whose
errors are not those of a prediction of losses: its MSE, MAE and skill are "off scale" (:func:`off_scale`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from simfluence.evaluation.metrics import counterfactual_skill

COLUMNS = {
    "mse": "all-steps MSE",
    "mae": "all-steps MAE",
    "final_spearman": "final-step ρ",
    "skill": "skill",
    "across_runs_spearman": "across-runs ρ",
}
"""The metrics of a table, and what they are called there."""

NOTE = (
    "Mean ± standard deviation over held-out runs (across-runs ρ: over test examples; skill:"
    " ± jackknife standard error over runs). Skill = 1 − MSE / MSE of the mean trajectory."
)


OFF_SCALE = 100.0
"""A method is off scale if its mean squared error is more than so many times that of persistence."""

WHY_OFF_SCALE = (
    f"off scale: a mean squared error of more than {OFF_SCALE:.0f} times that of persistence. Scores that are"
    " added up as they are can be in units of their own, not of loss: calibrate them (the simulator `scores`"
    " fits their scale)."
)


def summary(scores: pd.DataFrame, baseline: str = "mean_trajectory") -> pd.DataFrame:
    """One row a method and metric: method, metric, mean, spread, n (what NOTE says of each).

    ``baseline`` is the method that skill is measured against. Numbers are given also where a method is off
    scale.
    """
    rows = []
    by_run = _means_by_run(scores)
    base = by_run[baseline, "mse"].to_numpy()
    for method in scores["method"].unique():
        for metric in ("mse", "mae", "final_spearman"):
            values = by_run[method, metric].dropna().to_numpy()
            rows.append((method, metric, *_mean_and_sd(values)))
        mse = by_run[method, "mse"].to_numpy()
        rows.append((method, "skill", counterfactual_skill(mse, base), _jackknife(mse, base), len(mse)))
        across = scores[(scores["method"] == method) & (scores["metric"] == "across_runs_spearman")]
        if len(across):
            rows.append((method, "across_runs_spearman", *_mean_and_sd(across["value"].dropna().to_numpy())))
    return pd.DataFrame(rows, columns=["method", "metric", "mean", "spread", "n"])


def table(scores: pd.DataFrame, baseline: str = "mean_trajectory") -> pd.DataFrame:
    """One row a method, one column a metric, cells "mean ± spread"; "–" where there is nothing to say,
    "off scale" where errors are (ranks are compared all the same).
    """
    frame = summary(scores, baseline)
    cells = frame.assign(cell=[cell(m, s) for m, s in zip(frame["mean"], frame["spread"], strict=True)])
    of_errors = cells["metric"].isin(["mse", "mae", "skill"])
    cells.loc[of_errors & cells["method"].isin(off_scale(scores, baseline)), "cell"] = "off scale"
    wide = cells.pivot_table(index="method", columns="metric", values="cell", aggfunc="first")
    wide = wide.reindex(index=scores["method"].unique(), columns=list(COLUMNS)).fillna("–")
    return wide.rename(columns=COLUMNS)


def to_markdown(scores: pd.DataFrame, baseline: str = "mean_trajectory") -> str:
    """The table, and below it what its cells are."""
    notes = [NOTE, *([WHY_OFF_SCALE] if off_scale(scores, baseline) else [])]
    return "\n\n".join([table(scores, baseline).to_markdown(disable_numparse=True), *notes]) + "\n"


_LATEX = {"±": r"$\pm$", "−": "$-$", "–": "--", "ρ": r"$\rho$", "≥": r"$\geq$", "×": r"$\times$"}


def to_latex(frame: pd.DataFrame) -> str:
    """Any table as LaTeX (of the package booktabs), its index the first column."""
    headers = [str(frame.index.name or ""), *map(str, frame.columns)]
    rows = [[str(name), *cells] for name, cells in zip(frame.index, frame.to_numpy().tolist(), strict=True)]
    text = tabulate(rows, headers=headers, tablefmt="latex_booktabs", disable_numparse=True)
    for sign, command in _LATEX.items():
        text = text.replace(sign, command)
    return text + "\n"


def write_table(frame: pd.DataFrame, folder: str | Path, name: str, *notes: str) -> str:
    """One table in three files of a folder, of that name: .md (with the notes below it), .csv, .tex.

    Returns the markdown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    markdown = "\n\n".join([frame.to_markdown(disable_numparse=True), *notes]) + "\n"
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
    frame.to_csv(folder / f"{name}.csv", lineterminator="\n")
    (folder / f"{name}.tex").write_text(to_latex(frame), encoding="utf-8")
    return markdown


def off_scale(scores: pd.DataFrame, baseline: str = "mean_trajectory") -> list[str]:
    """The methods whose mean squared error over all runs is more than :data:`OFF_SCALE` times that of
    persistence (of ``baseline``, where persistence is not among the methods).
    """
    mse = _means_by_run(scores).xs("mse", level="metric").groupby("method", sort=False).mean()
    reference = mse["persistence" if "persistence" in mse else baseline]
    return list(mse.index[mse > OFF_SCALE * reference]) if reference > 0 else []


def _means_by_run(scores: pd.DataFrame) -> pd.Series:
    """Of what is measured in each run: [method, metric, run] → mean over test examples."""
    return scores[scores["run"] != ""].groupby(["method", "metric", "run"], sort=False)["value"].mean()


def _mean_and_sd(values: np.ndarray) -> tuple[float, float, int]:
    if len(values) == 0:
        return np.nan, np.nan, 0
    with np.errstate(invalid="ignore"):  # NaN where an error is infinite
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return float(np.mean(values)), sd, len(values)


def _jackknife(mse: np.ndarray, base: np.ndarray) -> float:
    """Standard error of the skill, leaving out one run at a time."""
    n = len(mse)
    if n < 2:
        return np.nan
    left = np.array([counterfactual_skill(np.delete(mse, i), np.delete(base, i)) for i in range(n)])
    with np.errstate(invalid="ignore"):  # NaN where an error is infinite
        return float(np.sqrt((n - 1) / n * np.sum(np.square(left - np.mean(left)))))


def cell(mean: float, spread: float) -> str:
    """Digits follow the spread: two significant ones of it."""
    if not np.isfinite(mean):
        return "–"
    if not np.isfinite(spread) or spread == 0:
        return f"{mean:.3g}"
    digits = int(np.clip(1 - np.floor(np.log10(spread)), 0, 6))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"
