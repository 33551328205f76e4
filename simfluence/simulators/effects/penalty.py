"""Choosing the penalty of an effects regression by out-of-fold error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simfluence.simulators.effects.regression import EffectsFit, EffectsRegression

PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-4, 4))


@dataclass(frozen=True)
class Chosen:
    """A fit and its λ; errors: λ → all-steps MSE of runs that were not seen, of those tried."""

    penalty: float
    errors: dict[float, float]
    fit: EffectsFit

    @property
    def error(self) -> float:
        """That of the chosen λ; NaN where nothing could measure it."""
        return self.errors[self.penalty]


def choose_penalty(
    regression: EffectsRegression,
    penalty: float | None = None,
    starts: Sequence[float] = (0.1, 10.0),
    error_of: Callable[[EffectsFit], float] | None = None,
) -> Chosen:
    """The fit with this λ, or with the λ of least error: from each of ``starts`` downhill both ways, and λ =
    inf.

    Of two runs, how well one predicts the other is no measure of a fit to both: there λ is at least 1. Of a
    single run, nothing but λ = inf can be chosen.

    error_of : the error of a fit; by default that of the out-of-fold predictions.
    Raises ValueError for a λ that is too small for a stable solution.
    """
    fits: dict[float, EffectsFit] = {}
    errors: dict[float, float] = {}
    runs = len(regression.data.train)

    def error(value: float) -> float:
        if value not in errors:
            try:
                fit = fits[value] = regression.solve(value)
            except ValueError:  # numerically singular: λ too small
                return np.inf
            known = np.nan if fit.out_of_fold is None else fit.out_of_fold.error
            errors[value] = error_of(fit) if error_of else known
        return errors[value]

    if penalty is None and runs == 1 and error_of is None:
        penalty = np.inf
    if penalty is not None:
        error(penalty)
        if penalty not in fits:
            raise ValueError(f"the penalty {penalty:g} is too small for a stable solution")
        return Chosen(penalty, errors, fits[penalty])
    least = 1.0 if runs == 2 and error_of is None else 0.0
    penalties = [value for value in PENALTIES if value >= least]
    ends = [np.inf]
    for start in starts:
        at = int(np.argmin(np.abs(np.log(np.array(penalties) / start))))
        for way in (-1, 1):
            while 0 <= at + way < len(penalties) and error(penalties[at + way]) < error(penalties[at]):
                at += way
        ends.append(penalties[at])
    error(np.inf)
    best = min((value for value in ends if value in fits), key=error)
    return Chosen(best, errors, fits[best])
