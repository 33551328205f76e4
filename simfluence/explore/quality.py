"""How good a fitted simulator is on runs that it has not seen, in numbers that a page can draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.evaluation.metrics import final_loss
from simfluence.fitted import Fitted
from simfluence.runs import RunSet
from simfluence.simulators.baselines import MeanTrajectory

Array = npt.NDArray[np.float64]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MOST_POINTS = 2000
"""No more points are drawn."""


def quality(fitted: Fitted, runs: RunSet) -> dict[str, Any] | None:
    """Predicted against recorded final losses of the runs of a set that the simulator has not seen.

    Returns
    -------
    None where every run was fitted to, or it is not known which. Else runs: their ids; of each point (a run
    and a test example) true and predicted loss, run and test (rows); skill: 1 − Σ e² / Σ ē² of final losses,
    with ē the errors of the mean of the runs of the fit, None where it is not known; levels and held: of
    bands of these levels the share of final losses inside them, without fitted bands both empty.
    """
    if fitted.runs is None:
        return None
    unseen = np.flatnonzero([not fitted.has_seen(run) for run in runs])
    if not len(unseen):
        return None
    held_out = runs[unseen]
    simulated = fitted.simulator.simulate(held_out.curricula, held_out.initial_loss)
    true = final_loss(held_out.loss)
    predicted = final_loss(simulated, held_out.loss)
    levels, held = _calibration(fitted, held_out, true - predicted)
    run, test = np.nonzero(np.isfinite(true) & np.isfinite(predicted))
    drawn = np.linspace(0, len(run) - 1, min(len(run), MOST_POINTS)).round().astype(np.int64)
    run, test = run[drawn], test[drawn]
    return {
        "runs": held_out.ids,
        "run": run,
        "test": test,
        "true": true[run, test],
        "predicted": predicted[run, test],
        "skill": _skill(fitted, runs, held_out, true, predicted),
        "levels": levels,
        "held": held,
    }


def _skill(fitted: Fitted, runs: RunSet, held_out: RunSet, true: Array, predicted: Array) -> float | None:
    seen = [number for number, run in enumerate(runs) if fitted.has_seen(run)]
    if not seen:
        return None
    mean = MeanTrajectory().fit(runs[seen]).simulate(held_out.curricula, held_out.initial_loss)
    usual = np.nansum(np.square(true - final_loss(mean, held_out.loss)))
    return float(1 - np.nansum(np.square(true - predicted)) / usual) if usual > 0 else None


def _calibration(fitted: Fitted, held_out: RunSet, errors: Array) -> tuple[list[float], list[float]]:
    """Of bands as wide as quantiles of the errors on runs that were left out of the fit, the shares of the
    errors on ``held_out`` that they hold.
    """
    bands = fitted.bands
    if bands is None or not len(bands.errors_):
        return [], []
    last = len(bands.scale_) - 1
    own = np.abs(bands.errors_[:, -1].astype(np.float64)) / bands.scale_[bands.points_[-1]]
    ends = [min(len(run), last) for run in held_out]
    ratios = np.abs(errors) / bands.scale_[ends]
    own, ratios = own[np.isfinite(own)], ratios[np.isfinite(ratios)]
    return list(LEVELS), [float((ratios <= np.quantile(own, level)).mean()) for level in LEVELS]
