"""Learning rates of recorded runs, and of runs on an edited curriculum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.errors import RunDataError
from simfluence.runs.run import Run

Array = npt.NDArray[np.float64]

STRETCH, KEEP = RULES = ("stretch", "keep")
"""What the learning rate does where an edit changes a run's length."""


def check_rule(schedule: str) -> None:
    """Raises ValueError for a rule of another name."""
    if schedule not in RULES:
        raise ValueError(
            f"schedule must be {STRETCH!r} (recomputed for the new length) or {KEEP!r} (the original's rates,"
            f" step by step), got {schedule!r}"
        )


def recorded_rates(run: Run) -> Array | None:
    """The learning rates of a run, float [step]: as logged, gaps interpolated; None where none are known."""
    rates = mean_learning_rate([run])
    return rates if len(rates) and np.isfinite(rates).all() else None


def edited_rates(run: Run, steps: int, schedule: str) -> Array | None:
    """The learning rates of a run as it would be with another number of steps, float [step].

    schedule : "stretch" or "keep"; see :func:`stretched` and :func:`kept`. Steps of warm-up that the run's
        configuration fixes (``warmup_steps``, as transformers' Trainer has it) are not stretched.

    None where the run's rates are not known. Raises ValueError for another schedule.
    """
    check_rule(schedule)
    rates = recorded_rates(run)
    if rates is None:
        return None
    if schedule == KEEP:
        return kept(rates, steps)
    warmup = run.config.get("warmup_steps")
    return stretched(rates, steps, int(warmup) if isinstance(warmup, int | float) else 0)


def kept(rates: Array, steps: int) -> Array:
    """The rates step by step; past their end the last one goes on. float [step]"""
    return rates[np.minimum(np.arange(steps), len(rates) - 1)]


def stretched(rates: Array, steps: int, warmup: int = 0) -> Array:
    """The rates recomputed for another number of steps, float [step].

    The first ``warmup`` steps keep theirs. Of the T steps after them, step t of n has the rate at step t T/n,
    linear between steps and, after the last one, as it went before, but never negative. This is exact for
    constant and linear schedules; cosines and a warm-up that is a share of the steps come out but for the
    rounding of steps.
    """
    first = min(warmup, steps, len(rates) - 1)
    rest, number = rates[first:], steps - first
    at = np.arange(number) * (len(rest) / max(number, 1))
    found = np.interp(at, np.arange(len(rest)), rest)
    beyond = at - (len(rest) - 1)
    if len(rest) > 1:
        found += np.maximum(beyond, 0) * (rest[-1] - rest[-2])
    return np.concatenate([rates[:first], np.maximum(found, 0)])


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
