"""Effects, and what examples still teach when they are used: found in rounds.

A dynamics (dynamics.py) says how much a use still teaches; with uses weighted so, a regression
(regression.py) finds the effects of a use that teaches all; these make a better dynamics. From
unweighted uses,

    B ← ½ (c B + regression on counts · ρ γ),     c by least squares;     ρ, γ ← dynamics of B

where halving keeps the rounds from swinging. Every training run is predicted_now by dynamics that have not seen
it, nor have the effects in them (``FOLDS`` parts, each taking all rounds without its runs); which round_ is
best is what they say. Penalties are chosen once, on all runs. What counts later are deviations from the mean
over all runs (prior.py): there every part's dynamics is given that mean, since that of the others differs
from it by what is peculiar to the part's own runs, with the wrong sign.

Scores may be the effects instead (replayed.py). Where nothing was found in these runs, the kernel may change
(dynamics_fit.py). Fewer than four runs are too few to find effects, and to say how good they are: if there
are scores, the dynamics has those, and all of few runs are predicted_now by the one fitted to all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.simulators.dynamics.fit import anchored, fit_dynamics, misfit
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.effects.fitting import FEWEST_RUNS, Fitting, Settings
from simfluence.simulators.effects.model import average_effects
from simfluence.simulators.effects.prior import Predicted

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FOLDS = 8
ROUNDS = 4
SHUFFLES = 19
_LEAST_TOLD = 0.8  # how wrong scores may be of few runs
_DECAY = 0.1  # effects of uses weighted by what they teach change little


@dataclass(frozen=True)
class Round:
    """A dynamics, and the λ that its effects were found with."""

    dynamics: TrainingDynamics
    penalty: float


def alternating_fit(
    fitting: Fitting, momentum: tuple[float, bool], penalties: list[float] | None = None
) -> list[Round]:
    """All rounds, or as many as there are penalties given; fewer where no effects are found.

    momentum : the optimizer's (β, whether it corrects its bias), as far as known.
    penalties : λ of each round_; None chooses them by leave-one-run-out rollouts.
    """
    beta, corrected = momentum
    settings = Settings(
        momentum=beta,
        corrected=corrected,
        decay=_DECAY,
        link="log_odds",
        means=tuple(range(len(fitting.scores))),
    )
    rounds: list[Round] = []
    weights, effects, start = None, np.empty(0), 0.1
    for round_ in range(ROUNDS if penalties is None else len(penalties)):
        if rounds:
            settings = dataclasses.replace(settings, momentum=rounds[-1].dynamics.momentum, rates=False)
        if penalties is None:
            chosen = fitting.choose_penalty(settings, start=start, weights=weights)
            penalty, model = chosen.penalty, chosen.model
        else:
            penalty = penalties[round_]
            model, _ = fitting.regression(settings, weights).solve(penalty, leave_out=False)
        found = average_effects(
            model,
            fitting.features(settings),
            fitting.scores,
            settings.decay,
            settings.link,
            int(fitting.recorded.grid[-1]),
        )
        if not found.any():
            break
        if rounds:
            found = (found + (effects * found).sum() / np.square(effects).sum() * effects) / 2
        effects = found
        near = rounds[-1].dynamics if rounds else None
        dynamics = _dynamics(fitting, momentum, effects, changing=False, near=near)
        rounds.append(Round(dynamics, penalty))
        weights = dynamics.example_residuals(fitting.train.curricula)
        start = penalty if np.isfinite(penalty) else start
    return rounds


@dataclass(frozen=True)
class AlternatingFit:
    """What came of it: the dynamics' word on the training runs.

    name : "dynamics" of effects, or "replayed", of scores.
    """

    name: str
    predicted_before: Predicted

    @property
    def change(self) -> dict[str, Any]:
        """Of the settings, to use it."""
        assert isinstance(self.predicted_before.by, TrainingDynamics)
        return {"prior": self.name, "rates": False, "momentum": self.predicted_before.by.momentum}


def cross_fitted(
    fitting: Fitting, momentum: tuple[float, bool], penalties: list[float] | None = None
) -> AlternatingFit | None:
    """The best round_'s dynamics; None for losses without log-odds, or nothing found.

    penalties : λ of each round_ up to the best, if known (none: scores alone); the rest as in ``alternating_fit``.
    """
    if len(fitting.train) < FEWEST_RUNS or penalties == []:
        return of_scores(fitting, momentum)
    if not _has_log_odds(fitting):
        return None
    rounds = alternating_fit(fitting, momentum, penalties)
    predicted_now: list[list[tuple[Array, Array]]] = [[] for _ in rounds]
    errors: list[list[float]] = [[] for _ in rounds]
    for runs in _folds(fitting):
        others = alternating_fit(fitting.without(runs), momentum, [round_.penalty for round_ in rounds])
        rounds = rounds[: len(others)]
        for round_, other in enumerate(others):
            predicted_now[round_] += _of_unseen(fitting, other.dynamics, runs)
            blind = _predicted(other.dynamics, [fitting.train[int(run)].curriculum for run in runs])
            errors[round_] += [_error(fitting, int(run), one) for run, one in zip(runs, blind, strict=True)]
    if not rounds:
        return None
    best = len(rounds) - 1
    if penalties is None:
        best = int(np.argmin([sum(of_runs) for of_runs in errors[: len(rounds)]]))
    again = {"momentum": momentum, "penalties": [round_.penalty for round_ in rounds[: best + 1]]}
    return AlternatingFit("dynamics", _in_order(fitting, rounds[best].dynamics, predicted_now[best], again))


def of_scores(fitting: Fitting, momentum: tuple[float, bool]) -> AlternatingFit | None:
    """The dynamics whose effects are one array of scores, or all of them added up; the one that errs least.

    About 22 numbers are fitted. Of few runs, none is left out; instead, scores have to tell a fifth of what
    changes, and more than the same scores given to other training examples do, every time of ``SHUFFLES``.
    None if they do not, without any, or for losses without log-odds.
    """
    if not _has_log_odds(fitting):
        return None
    sizes = np.sqrt(np.square(fitting.scores).mean((1, 2), keepdims=True))
    arrays = list(fitting.scores / np.maximum(sizes, 1e-300))
    arrays += [np.sum(arrays, axis=0)] if len(arrays) > 1 else []
    if not arrays:
        return None
    fits = [_replayed(fitting, momentum, scores) for scores in arrays]
    best = int(np.argmin([wrong for _, wrong in fits]))
    dynamics, wrong = fits[best]
    again = {"momentum": momentum, "penalties": []}
    if len(fitting.train) >= FEWEST_RUNS:
        predicted_now = []
        for runs in _folds(fitting):
            other = _dynamics(fitting.without(runs), momentum, -arrays[best], changing=True)
            predicted_now += _of_unseen(fitting, other, runs)
        return AlternatingFit("replayed", _in_order(fitting, dynamics, predicted_now, again))
    rng = np.random.default_rng(0)
    if wrong > _LEAST_TOLD or any(
        _replayed(fitting, momentum, rng.permutation(arrays[best]))[1] <= wrong for _ in range(SHUFFLES)
    ):
        return None
    curricula = fitting.train.curricula
    predicted_before = Predicted(
        dynamics, _predicted(dynamics, curricula), dynamics.example_residuals(curricula), again
    )
    return AlternatingFit("replayed", predicted_before)


def _has_log_odds(fitting: Fitting) -> bool:
    return all((losses > 0).all() for losses in fitting.recorded.losses)


def _folds(fitting: Fitting) -> list[IntArray]:
    """Numbers of the runs in each of ``FOLDS`` parts."""
    number = np.arange(len(fitting.train)) % FOLDS
    return [np.flatnonzero(number == fold) for fold in range(min(FOLDS, len(fitting.train)))]


def _of_unseen(fitting: Fitting, dynamics: TrainingDynamics, runs: IntArray) -> list[tuple[Array, Array]]:
    """What one that has not seen these runs says of them on the level of all: (losses, weights) of each."""
    recorded, curricula = fitting.recorded, [fitting.train[int(run)].curriculum for run in runs]
    leveled = anchored(dynamics, fitting.train.curricula, recorded.losses, recorded.grid)
    return list(zip(_predicted(leveled, curricula), leveled.example_residuals(curricula), strict=True))


def _in_order(
    fitting: Fitting, by: TrainingDynamics, predicted_now: list[tuple[Array, Array]], again: dict[str, Any]
) -> Predicted:
    """From parts to runs."""
    order = np.argsort(np.concatenate(_folds(fitting)))
    return Predicted(
        by, [predicted_now[at][0] for at in order], [predicted_now[at][1] for at in order], again
    )


def _replayed(
    fitting: Fitting, momentum: tuple[float, bool], scores: Array
) -> tuple[TrainingDynamics, float]:
    """The dynamics with these as its effects, and its misfit of the runs that it was fitted to."""
    dynamics, recorded = _dynamics(fitting, momentum, -scores, changing=True), fitting.recorded
    return dynamics, misfit(dynamics, fitting.train.curricula, recorded.losses, recorded.grid)


def _dynamics(
    fitting: Fitting,
    momentum: tuple[float, bool],
    effects: Array,
    *,
    changing: bool,
    near: TrainingDynamics | None = None,
) -> TrainingDynamics:
    """The dynamics with these effects that is nearest to the training runs."""
    beta, corrected = momentum
    return fit_dynamics(
        effects,
        fitting.train.curricula,
        fitting.recorded.losses,
        fitting.recorded.grid,
        momentum=beta,
        corrected=corrected,
        rates=fitting.rates,
        changing=changing,
        near=near,
    )


def _predicted(dynamics: TrainingDynamics, curricula: Sequence[Curriculum]) -> list[Array]:
    """Losses [step + 1, test] of each."""
    losses = dynamics.simulate(curricula)
    return [losses[at, : len(curriculum) + 1] for at, curriculum in enumerate(curricula)]


def _error(fitting: Fitting, run: int, predicted_now: Array) -> float:
    """Sum of squares of what was predicted_now of a run less what happened, at the steps of the grid."""
    true = fitting.recorded.losses[run]
    at = np.minimum(fitting.recorded.grid[: len(true)], len(predicted_now) - 1)
    return float(np.square(predicted_now[at] - true)[1:].sum())
