"""Training dynamics that predict each training run without having seen it (analysis/METHODS.md, "Alternating
fit").

The kernel of training dynamics is either attribution scores, which were not taken from the runs, or effects
that are found in the runs. In the second case two fits alternate: dynamics give the residual ρ of every use
of an example and the rates γ; with uses weighted by ρ γ, a regression finds the effects of a use at full
residual; these are the kernel of better dynamics. From unweighted uses,

    B ← ½ (c B + regression on counts · ρ γ),     c by least squares;     ρ, γ ← dynamics with the kernel −B

where halving keeps the rounds from swinging.

Cross-fitting: the runs are left out in ``FOLDS`` parts, each part predicted by dynamics, and effects in them,
that were fitted to the other runs. Penalties are chosen once, on all runs. What counts later are deviations
from the mean over *all* runs (effects/prior.py), so each part's dynamics are given that mean: the mean of the
other runs differs from it by what is peculiar to the part, with the opposite sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.simulators.dynamics.fit import Fitted, anchored, fit_dynamics
from simfluence.simulators.dynamics.kernels import fit_scores
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.effects.data import FEWEST_RUNS, TrainingData
from simfluence.simulators.effects.model import EffectsSettings
from simfluence.simulators.effects.penalty import choose_penalty
from simfluence.simulators.effects.regression import EffectsRegression

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FOLDS = 8
MANY_RUNS = 16
"""From so many runs on, five parts do."""
ROUNDS = 2
LEAST_EXPLAINED = 0.01
"""Scores that explain less of few runs are not used."""
_FOLD_EVALUATIONS = 4  # a fold's fit begins at the numbers found on all runs
DECAY = 0.1
"""Effects of uses weighted by their residuals change little over training."""


@dataclass(frozen=True)
class CrossFitted:
    """Training dynamics fitted to all runs, and what they predict of each run without having seen it.

    predicted : losses, one [step + 1, test] a run. use_weights : ρ γ, one [use] a run.
    penalties : λ of every round of the alternating fit; empty where the kernel is scores.
    explained : as in ``Fitted``.
    """

    dynamics: TrainingDynamics
    predicted: list[Array]
    use_weights: list[Array]
    penalties: list[float]
    explained: float


def stages_of(data: TrainingData) -> int:
    """How many times ``advance`` is called by either function below."""
    folds = len(_folds(data))
    return ROUNDS * (1 + folds)


def scores_dynamics(data: TrainingData, scores: Array, advance: Callable[[], Any]) -> CrossFitted | None:
    """Training dynamics whose kernel is scores [array, train, test]; about 22 numbers are fitted.

    None for losses without log-odds. Of few runs none is left out; there deviations from the runs are
    shrunken (:func:`.fit.explained_share`), and None is returned too where the scores explain nothing.
    """
    if not data.has_log_odds:
        return None
    found, kernel = fit_scores(scores, data)
    advance()
    if len(data.train) < FEWEST_RUNS:
        if found.explained < LEAST_EXPLAINED:
            return None
        return _put_together(found, _predictions(found.dynamics, data, np.arange(len(data.train))), [])
    parts: dict[int, tuple[Array, Array]] = {}
    for runs in _folds(data):
        other = fit_dynamics(
            -kernel, data.without(runs), changing=True, start=found.numbers, evaluations=_FOLD_EVALUATIONS
        )
        advance()
        parts |= _unseen(other.dynamics, data, runs)
    return _put_together(found, parts, [])


def effects_dynamics(
    data: TrainingData, advance: Callable[[], Any], penalties: list[float] | None = None
) -> CrossFitted | None:
    """Training dynamics whose kernel are effects found in the runs, by the alternating fit.

    None for losses without log-odds, too few runs, or if no effects are found.

    penalties : λ of each round; None chooses them by out-of-fold error.
    """
    if not data.has_log_odds or len(data.train) < FEWEST_RUNS:
        return None
    rounds = _alternate(data, advance, penalties, [])
    if not rounds:
        return None
    penalties = [one.penalty for one in rounds]
    starts = [one.fitted.numbers for one in rounds]
    parts: dict[int, tuple[Array, Array]] = {}
    for runs in _folds(data):
        others = _alternate(data.without(runs), advance, penalties, starts)
        if not others:
            return None
        parts |= _unseen(others[-1].fitted.dynamics, data, runs)
    return _put_together(rounds[-1].fitted, parts, penalties)


@dataclass(frozen=True)
class _Round:
    """Dynamics, and the λ that the effects in their kernel were found with."""

    fitted: Fitted
    penalty: float


def _alternate(
    data: TrainingData, advance: Callable[[], Any], penalties: list[float] | None, starts: list[Array]
) -> list[_Round]:
    """All rounds; fewer where no effects are found. ``starts`` : numbers of the dynamics of each round."""
    settings = EffectsSettings(momentum=data.momentum, decay=DECAY)
    rounds: list[_Round] = []
    weights, effects, near = None, np.zeros(data.shape), [0.1, 10.0]
    for number in range(ROUNDS if penalties is None else len(penalties)):
        regression = EffectsRegression(data, settings, use_weights=weights)
        if penalties is None:
            chosen = choose_penalty(regression, starts=near)
            penalty, model = chosen.penalty, chosen.fit.model
            near = [penalty] if np.isfinite(penalty) else near
        else:
            penalty = penalties[number]
            model = regression.solve(penalty, leave_out=False).model
        found = model.average_effects()
        if not found.any():
            break
        if rounds:
            found = (found + (effects * found).sum() / np.square(effects).sum() * effects) / 2
        effects = found
        start = starts[number] if starts else rounds[-1].fitted.numbers if rounds else None
        fitted = fit_dynamics(
            effects, data, changing=False, start=start, evaluations=_FOLD_EVALUATIONS if starts else 40
        )
        advance()
        rounds.append(_Round(fitted, penalty))
        dynamics = fitted.dynamics
        settings = EffectsSettings(momentum=dynamics.momentum, decay=DECAY, with_rates=False)
        weights = dynamics.use_weights(data.train.curricula, data.run_rates)
    return rounds


def _folds(data: TrainingData) -> list[IntArray]:
    """Numbers of the runs in each part."""
    runs = len(data.train)
    folds = min(FOLDS, runs) if runs < MANY_RUNS else 5
    number = np.arange(runs) % folds
    return [np.flatnonzero(number == fold) for fold in range(folds)]


def _unseen(dynamics: TrainingDynamics, data: TrainingData, runs: IntArray) -> dict[int, tuple[Array, Array]]:
    """Predictions of runs by dynamics that have not seen them, at the level of all runs."""
    return _predictions(anchored(dynamics, data), data, runs)


def _predictions(
    dynamics: TrainingDynamics, data: TrainingData, runs: IntArray
) -> dict[int, tuple[Array, Array]]:
    """Run → (losses [step + 1, test], ρ γ [use])."""
    curricula = [data.train[int(run)].curriculum for run in runs]
    rates = data.run_rates[runs][:, : max(len(curriculum) for curriculum in curricula)]
    losses, weights = dynamics.simulate(curricula, rates), dynamics.use_weights(curricula, rates)
    return {int(run): (losses[at, : len(curricula[at]) + 1], weights[at]) for at, run in enumerate(runs)}


def _put_together(
    fitted: Fitted, parts: dict[int, tuple[Array, Array]], penalties: list[float]
) -> CrossFitted:
    runs = sorted(parts)
    losses, weights = ([parts[run][which] for run in runs] for which in (0, 1))
    return CrossFitted(fitted.dynamics, losses, weights, penalties, fitted.explained)
