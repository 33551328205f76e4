"""Effects, and what examples still teach when they are used: found in turns.

A surrogate (surrogate.py) says how much a use still teaches; with uses weighted so, a regression
(regression.py) finds the effects of a use that teaches all; these make a better surrogate. From
unweighted uses,

    B ← ½ (c B + regression on counts · ρ γ),     c by least squares;     ρ, γ ← surrogate of B

where halving keeps the turns from swinging. Every training run is told by surrogates that have not seen
it, nor have the effects in them (``FOLDS`` parts, each taking all turns without its runs); which turn is
best is what they say. Penalties are chosen once, on all runs. What counts later are deviations from the mean
over all runs (offset.py): there every part's surrogate is given that mean, since that of the others differs
from it by what is peculiar to the part's own runs, with the wrong sign.

Scores may be the effects instead (replayed.py). Where nothing was found in these runs, the kernel may change
(surrogate_fit.py). Fewer than four runs are too few to find effects, and to say how good they are: if there
are scores, the surrogate has those, and all of few runs are told by the one fitted to all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.simulators.effects import average_effects
from simfluence.simulators.fitting import FEWEST_RUNS, Fitting, Settings
from simfluence.simulators.offset import Foretold
from simfluence.simulators.surrogate import Surrogate
from simfluence.simulators.surrogate_fit import anchored, fit_surrogate, misfit

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FOLDS = 8
TURNS = 4
SHUFFLES = 19
_LEAST_TOLD = 0.8  # how wrong scores may be of few runs
_DECAY = 0.1  # effects of uses weighted by what they teach change little


@dataclass(frozen=True)
class Turn:
    """A surrogate, and the λ that its effects were found with."""

    surrogate: Surrogate
    penalty: float


def alternate(
    fitting: Fitting, memory: tuple[float, bool], penalties: list[float] | None = None
) -> list[Turn]:
    """All turns, or as many as there are penalties given; fewer where no effects are found.

    memory : the optimizer's (β, whether it corrects its bias), as far as known.
    penalties : λ of each turn; None chooses them by leave-one-run-out rollouts.
    """
    beta, corrected = memory
    settings = Settings(
        memory=beta,
        corrected=corrected,
        decay=_DECAY,
        link="log_odds",
        means=tuple(range(len(fitting.scores))),
    )
    turns: list[Turn] = []
    weights, effects, start = None, np.empty(0), 0.1
    for turn in range(TURNS if penalties is None else len(penalties)):
        if turns:
            settings = dataclasses.replace(settings, memory=turns[-1].surrogate.memory, rates=False)
        if penalties is None:
            chosen = fitting.choose_penalty(settings, start=start, weights=weights)
            penalty, model = chosen.penalty, chosen.model
        else:
            penalty = penalties[turn]
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
        if turns:
            found = (found + (effects * found).sum() / np.square(effects).sum() * effects) / 2
        effects = found
        near = turns[-1].surrogate if turns else None
        surrogate = _surrogate(fitting, memory, effects, changing=False, near=near)
        turns.append(Turn(surrogate, penalty))
        weights = surrogate.teaching(fitting.train.curricula)
        start = penalty if np.isfinite(penalty) else start
    return turns


@dataclass(frozen=True)
class Alternated:
    """What came of it: the surrogates' word on the training runs.

    name : "surrogate" of effects, or "replayed", of scores.
    """

    name: str
    foretold: Foretold

    @property
    def change(self) -> dict[str, Any]:
        """Of the settings, to use it."""
        assert isinstance(self.foretold.by, Surrogate)
        return {"offset": self.name, "rates": False, "memory": self.foretold.by.memory}


def cross_fitted(
    fitting: Fitting, memory: tuple[float, bool], penalties: list[float] | None = None
) -> Alternated | None:
    """The best turn's surrogate; None for losses without log-odds, or nothing found.

    penalties : λ of each turn up to the best, if known (none: scores alone); the rest as in ``alternate``.
    """
    if len(fitting.train) < FEWEST_RUNS or penalties == []:
        return of_scores(fitting, memory)
    if not _has_log_odds(fitting):
        return None
    turns = alternate(fitting, memory, penalties)
    told: list[list[tuple[Array, Array]]] = [[] for _ in turns]
    errors: list[list[float]] = [[] for _ in turns]
    for runs in _folds(fitting):
        others = alternate(fitting.without(runs), memory, [turn.penalty for turn in turns])
        turns = turns[: len(others)]
        for turn, other in enumerate(others):
            told[turn] += _of_unseen(fitting, other.surrogate, runs)
            blind = _told(other.surrogate, [fitting.train[int(run)].curriculum for run in runs])
            errors[turn] += [_error(fitting, int(run), one) for run, one in zip(runs, blind, strict=True)]
    if not turns:
        return None
    best = len(turns) - 1
    if penalties is None:
        best = int(np.argmin([sum(of_runs) for of_runs in errors[: len(turns)]]))
    again = {"memory": memory, "penalties": [turn.penalty for turn in turns[: best + 1]]}
    return Alternated("surrogate", _in_order(fitting, turns[best].surrogate, told[best], again))


def of_scores(fitting: Fitting, memory: tuple[float, bool]) -> Alternated | None:
    """The surrogate whose effects are one array of scores, or all of them added up; the one that errs least.

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
    fits = [_replayed(fitting, memory, scores) for scores in arrays]
    best = int(np.argmin([wrong for _, wrong in fits]))
    surrogate, wrong = fits[best]
    again = {"memory": memory, "penalties": []}
    if len(fitting.train) >= FEWEST_RUNS:
        told = []
        for runs in _folds(fitting):
            other = _surrogate(fitting.without(runs), memory, -arrays[best], changing=True)
            told += _of_unseen(fitting, other, runs)
        return Alternated("replayed", _in_order(fitting, surrogate, told, again))
    rng = np.random.default_rng(0)
    if wrong > _LEAST_TOLD or any(
        _replayed(fitting, memory, rng.permutation(arrays[best]))[1] <= wrong for _ in range(SHUFFLES)
    ):
        return None
    curricula = fitting.train.curricula
    foretold = Foretold(surrogate, _told(surrogate, curricula), surrogate.teaching(curricula), again)
    return Alternated("replayed", foretold)


def _has_log_odds(fitting: Fitting) -> bool:
    return all((losses > 0).all() for losses in fitting.recorded.losses)


def _folds(fitting: Fitting) -> list[IntArray]:
    """Numbers of the runs in each of ``FOLDS`` parts."""
    number = np.arange(len(fitting.train)) % FOLDS
    return [np.flatnonzero(number == fold) for fold in range(min(FOLDS, len(fitting.train)))]


def _of_unseen(fitting: Fitting, surrogate: Surrogate, runs: IntArray) -> list[tuple[Array, Array]]:
    """What one that has not seen these runs says of them on the level of all: (losses, weights) of each."""
    recorded, curricula = fitting.recorded, [fitting.train[int(run)].curriculum for run in runs]
    leveled = anchored(surrogate, fitting.train.curricula, recorded.losses, recorded.grid)
    return list(zip(_told(leveled, curricula), leveled.teaching(curricula), strict=True))


def _in_order(
    fitting: Fitting, by: Surrogate, told: list[tuple[Array, Array]], again: dict[str, Any]
) -> Foretold:
    """From parts to runs."""
    order = np.argsort(np.concatenate(_folds(fitting)))
    return Foretold(by, [told[at][0] for at in order], [told[at][1] for at in order], again)


def _replayed(fitting: Fitting, memory: tuple[float, bool], scores: Array) -> tuple[Surrogate, float]:
    """The surrogate with these as its effects, and its misfit of the runs that it was fitted to."""
    surrogate, recorded = _surrogate(fitting, memory, -scores, changing=True), fitting.recorded
    return surrogate, misfit(surrogate, fitting.train.curricula, recorded.losses, recorded.grid)


def _surrogate(
    fitting: Fitting,
    memory: tuple[float, bool],
    effects: Array,
    *,
    changing: bool,
    near: Surrogate | None = None,
) -> Surrogate:
    """The surrogate with these effects that is nearest to the training runs."""
    beta, corrected = memory
    return fit_surrogate(
        effects,
        fitting.train.curricula,
        fitting.recorded.losses,
        fitting.recorded.grid,
        memory=beta,
        corrected=corrected,
        rates=fitting.rates,
        changing=changing,
        near=near,
    )


def _told(surrogate: Surrogate, curricula: Sequence[Curriculum]) -> list[Array]:
    """Losses [step + 1, test] of each."""
    losses = surrogate.simulate(curricula)
    return [losses[at, : len(curriculum) + 1] for at, curriculum in enumerate(curricula)]


def _error(fitting: Fitting, run: int, told: Array) -> float:
    """Sum of squares of what was told of a run less what happened, at the steps of the grid."""
    true = fitting.recorded.losses[run]
    at = np.minimum(fitting.recorded.grid[: len(true)], len(told) - 1)
    return float(np.square(told[at] - true)[1:].sum())
