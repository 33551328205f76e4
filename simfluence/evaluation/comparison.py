"""Is one method better than another? Paired differences over the same held-out runs.

    d_{r,z} = score of the method − score of the other, in run r, for test example z

The mean of d has a confidence interval and a p-value from a regression on a constant whose standard error is
robust to what test examples of one run have in common (clusters: runs; Student's t with runs − 1 degrees of
freedom; Cameron & Miller 2015, "A practitioner's guide to cluster-robust inference"). p-values of all methods
of a frame are adjusted together (Holm 1979).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

LOWER_IS_BETTER = {"mse": True, "mae": True, "final_spearman": False}
"""The metrics that are measured in each run, and whether less of them is better."""

FEWEST_RUNS = 3


def paired_differences(
    scores: pd.DataFrame, against: str, metric: str = "mse", level: float = 0.95
) -> pd.DataFrame:
    """How every method differs from one of them.

    Parameters
    ----------
    scores : long frame, as in :class:`.protocol.Evaluation`. against : what others are compared with.

    Returns
    -------
    One row a method: method, difference (mean of d), low, high (of the interval at ``level``), p, p_holm,
    runs, and better: "yes", "no", or "" where p_holm is not below 1 − level.

    Raises
    ------
    ValueError : there is no such metric or method, or there are fewer than three runs.
    """
    if metric not in LOWER_IS_BETTER:
        raise ValueError(f"metric must be one of {', '.join(LOWER_IS_BETTER)}, got {metric!r}")
    measured = scores[scores["metric"] == metric]
    rows, columns = ["run", "test_example"], measured["method"].unique()
    values = measured.pivot_table("value", rows, "method", dropna=False, sort=False)[columns]
    if against not in values:
        raise ValueError(f"there is no method {against!r}; there are {', '.join(values.columns)}")
    runs = values.index.get_level_values("run")
    if runs.nunique() < FEWEST_RUNS:
        raise ValueError(f"differences are compared over {FEWEST_RUNS} runs at least, got {runs.nunique()}")
    found = [
        {"method": method, **_difference(values[method] - values[against], level)}
        for method in measured["method"].unique()
        if method != against
    ]
    frame = pd.DataFrame(found, columns=["method", "difference", "low", "high", "p", "runs"])
    known = frame["p"].notna()
    frame["p_holm"] = np.nan
    if known.any():
        from statsmodels.stats.multitest import multipletests  # takes long to import

        frame.loc[known, "p_holm"] = multipletests(frame.loc[known, "p"], method="holm")[1]
    less = (frame["difference"] < 0) == LOWER_IS_BETTER[metric]
    tells = frame["p_holm"] < 1 - level
    frame["better"] = np.where(tells, np.where(less, "yes", "no"), "")
    return frame


def _difference(difference: pd.Series, level: float) -> dict[str, float]:
    """Mean, interval and p-value of differences [run, test example]; NaN where they are not finite."""
    known = difference[np.isfinite(difference)]
    runs = known.index.get_level_values("run")
    found = {"difference": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "runs": runs.nunique()}
    if runs.nunique() < FEWEST_RUNS or len(known) < len(difference.dropna()):
        return found
    found |= {"difference": float(known.mean())}
    if np.ptp(known) == 0:  # no spread, no interval: equal everywhere, or a constant apart
        return found
    from statsmodels.regression.linear_model import OLS  # takes long to import

    fit = OLS(known.to_numpy(), np.ones(len(known))).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(runs)[0]}, use_t=True
    )
    low, high = fit.conf_int(alpha=1 - level)[0]
    return found | {"low": float(low), "high": float(high), "p": float(fit.pvalues[0])}
