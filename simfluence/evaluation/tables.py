"""Paper-style tables from the long frame of scores."""

from __future__ import annotations

import numpy as np
import pandas as pd

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


def summary(scores: pd.DataFrame, baseline: str = "mean_trajectory") -> pd.DataFrame:
    """One row a method and metric: method, metric, mean, spread, n (what NOTE says of each).

    ``baseline`` is the method that skill is measured against.
    """
    rows = []
    by_run = scores[scores["run"] != ""].groupby(["method", "metric", "run"], sort=False)["value"].mean()
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
    """One row a method, one column a metric, cells "mean ± spread"; "–" where there is nothing to say."""
    frame = summary(scores, baseline)
    cells = frame.assign(cell=[_cell(m, s) for m, s in zip(frame["mean"], frame["spread"], strict=True)])
    wide = cells.pivot_table(index="method", columns="metric", values="cell", aggfunc="first")
    wide = wide.reindex(index=scores["method"].unique(), columns=list(COLUMNS)).fillna("–")
    return wide.rename(columns=COLUMNS)


def to_markdown(scores: pd.DataFrame, baseline: str = "mean_trajectory") -> str:
    return table(scores, baseline).to_markdown(disable_numparse=True) + "\n\n" + NOTE + "\n"


def _mean_and_sd(values: np.ndarray) -> tuple[float, float, int]:
    if len(values) == 0:
        return np.nan, np.nan, 0
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return float(np.mean(values)), sd, len(values)


def _jackknife(mse: np.ndarray, base: np.ndarray) -> float:
    """Standard error of the skill, leaving out one run at a time."""
    n = len(mse)
    if n < 2:
        return np.nan
    left = np.array([counterfactual_skill(np.delete(mse, i), np.delete(base, i)) for i in range(n)])
    return float(np.sqrt((n - 1) / n * np.sum(np.square(left - np.mean(left)))))


def _cell(mean: float, spread: float) -> str:
    """Digits follow the spread: two significant ones of it."""
    if not np.isfinite(mean):
        return "–"
    if not np.isfinite(spread) or spread == 0:
        return f"{mean:.3g}"
    digits = int(np.clip(1 - np.floor(np.log10(spread)), 0, 6))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"
