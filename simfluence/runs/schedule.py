"""Learning rates of recorded runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.errors import RunDataError
from simfluence.runs.run import Run

Array = npt.NDArray[np.float64]


def mean_learning_rate(runs: Sequence[Run], weights: npt.ArrayLike | None = None) -> Array:
    """The learning rate of every step, averaged over the runs that logged it, float [step].

    Steps that no run logged are interpolated between their neighbours; NaN everywhere if no run logged any.
    A run without logged rates whose optimizer's rate is known counts with that constant.

    Parameters
    ----------
    weights : ≥ 0, one a run; by default all count alike.
    """
    rates = np.full((len(runs), max(len(run) for run in runs)), np.nan)
    for number, run in enumerate(runs):
        rates[number, : len(run)] = run.learning_rate
        constant = run.optimizer.get("lr")
        if not np.isfinite(run.learning_rate).any() and isinstance(constant, int | float):
            rates[number, : len(run)] = constant
    weight = np.ones(len(runs)) if weights is None else np.asarray(weights, np.float64)
    known = np.isfinite(rates) * weight[:, None]
    steps = np.flatnonzero(known.any(0))
    if not len(steps):
        return np.full(rates.shape[1], np.nan)
    mean = np.where(known > 0, rates, 0.0)[:, steps] * known[:, steps]
    return np.interp(np.arange(rates.shape[1]), steps, mean.sum(0) / known[:, steps].sum(0))


def as_schedule(learning_rate: npt.ArrayLike, runs: int, steps: int) -> Array:
    """Learning rates [step] or [run, step] as float [run, step], cut to ``steps``.

    Raises ValueError for another shape, too few steps, or rates that are negative or not finite.
    """
    rates = np.asarray(learning_rate, np.float64)
    if rates.ndim not in (1, 2) or rates.shape[-1] < steps or rates.shape[:-1] not in ((), (runs,)):
        raise ValueError(
            f"learning_rate must be [step] = ({steps},) or [run, step] = ({runs}, {steps}), got {rates.shape}"
        )
    needed = rates[..., :steps]
    if not (np.isfinite(needed) & (needed >= 0)).all():
        raise ValueError("learning_rate must be finite and not negative at every step")
    return np.broadcast_to(needed, (runs, steps))


@dataclass(frozen=True)
class RelativeRates:
    """Learning rates as multiples of their mean over the recorded steps.

    Attributes
    ----------
    schedule : float [step], the runs' mean schedule relative to its mean; all 1 where no run logged rates.
    usual : the mean rate, NaN where it is not known.
    """

    schedule: Array
    usual: float

    @classmethod
    def of(cls, runs: Sequence[Run]) -> RelativeRates:
        """Those of recorded runs."""
        rates = mean_learning_rate(runs)
        usual = float(rates.mean())
        if not usual > 0:  # NaN, or never trained
            return cls(np.ones(len(rates)), np.nan)
        return cls(rates / usual, usual)

    def own(self, runs: Sequence[Run]) -> Array:
        """Relative rates of recorded runs [run, step]: as each logged them, else the mean schedule."""
        rates = np.array(self.at(len(runs), max(len(run) for run in runs)))
        for row, run in zip(rates, runs, strict=True):
            known = np.isfinite(run.learning_rate)
            if not np.isnan(self.usual):
                row[: len(run)][known] = run.learning_rate[known] / self.usual
        return rates

    def at(self, runs: int, steps: int, learning_rate: npt.ArrayLike | None = None) -> Array:
        """Relative rates [run, step] of curricula: the recorded schedule (its last rate goes on), or given
        ones.

        Raises RunDataError if rates are given but the recorded runs did not log theirs.
        """
        if learning_rate is None:
            step = np.minimum(np.arange(steps), len(self.schedule) - 1)
            return np.broadcast_to(self.schedule[step], (runs, steps))
        if np.isnan(self.usual):
            raise RunDataError(
                "learning_rate= was given, but the runs that this simulator was fitted to did not log their"
                " learning rates, so there is nothing to compare it with; leave it out"
            )
        return as_schedule(learning_rate, runs, steps) / self.usual
