"""Fitting members of the deviation family to recorded runs: what is shared by all settings, made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, usual_batch_size
from simfluence.runs import RunSet
from simfluence.simulators.blocks import Features, membership
from simfluence.simulators.design import Recorded, record_on_grid
from simfluence.simulators.effects import Model, link, simulate
from simfluence.simulators.memory import USUAL_MEMORY, relative_rates
from simfluence.simulators.offset import Foretold, Offset, offset
from simfluence.simulators.regression import LeftOut, Regression
from simfluence.simulators.tangent import Tangent, TangentTraining

FEWEST_RUNS = 4  # that can tell effects that hold by leaving one out
PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-4, 3.5, 0.5))

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Settings:
    """One member of the family. See ``DeviationSimulator`` for what they mean."""

    blocks: tuple[str, ...] = ("examples",)
    memory: float = USUAL_MEMORY
    corrected: bool = True
    noise_memory: float = 0.9
    decay: float = 0.3
    link: str = "identity"
    rates: bool = True
    means: tuple[int, ...] = ()  # which of the scores, see Fitting.scores
    offset: Literal["", "tangent", "surrogate", "replayed"] = ""  # what foretells most of it (offset.py)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A fitted member of the family; errors: λ → all-steps MSE of those tried."""

    settings: Settings
    penalty: float
    errors: dict[float, float]
    model: Model
    left_out: LeftOut | None

    @property
    def error(self) -> float:
        return self.errors.get(self.penalty, np.inf)


class Fitting:
    """Recorded runs, made ready once for fitting many settings.

    Parameters
    ----------
    scores : [array, train, test]; redundancy : [train, train] or empty.

    Attributes
    ----------
    scores : the given ones, and last, where training and test examples share groups, 1 for those pairs.
    few : whether nothing can check effects: two or three runs, or one, and no validation runs.
    """

    def __init__(
        self,
        train: RunSet,
        validation: RunSet | None,
        scores: Array,
        redundancy: Array,
        max_rows: int,
        tangent: Tangent | None = None,
    ) -> None:
        self.train = train
        self.validation = validation
        self.few = len(train) < FEWEST_RUNS and validation is None
        kinship = common_groups(train)
        self.given_scores, self._max_rows = scores, max_rows
        self.scores = scores if kinship is None else np.concatenate([scores, kinship[None]])
        self.redundancy = redundancy
        self.recorded: Recorded = record_on_grid(train, max_rows)
        self.batch_size = usual_batch_size(train.curricula)
        self.rates = relative_rates(train)
        self.groups = membership(train.train.frame["group"].tolist())
        start = np.stack([losses[0] for losses in self.recorded.losses])
        later = np.concatenate([losses[1:] - start.mean(0) for losses in self.recorded.losses])
        self.with_initial = bool(len(train) > 2 and start.std(0).mean() > 0.02 * later.std(0).mean())
        self.foretold: dict[str, Foretold] = {}
        if tangent is not None:
            training = TangentTraining.as_recorded(tangent, train)
            losses = training.simulate(train.curricula, start, [run.id for run in train])
            told = [losses[number, : len(run) + 1] for number, run in enumerate(train)]
            self.foretold["tangent"] = Foretold(training, told)

    def without(self, runs: npt.NDArray[np.int64]) -> Fitting:
        """The other runs, on about the same grid; without validation runs and foretellers."""
        others = np.setdiff1d(np.arange(len(self.train)), runs)
        rows = self._max_rows * len(others) // len(self.train)
        return Fitting(self.train[others], None, self.given_scores, self.redundancy, rows)

    # ------------------------------------------------------------------------------------ fitting

    def features(self, settings: Settings) -> Features:
        n_train = len(self.train.train)
        return make_features(settings, n_train, self.batch_size, self.rates, self.groups, self.redundancy)

    def offset(self, settings: Settings) -> Offset | None:
        """What is foretold of the training runs, in the link's space."""
        if not settings.offset:
            return None
        foretold = [link(losses, settings.link) for losses in self.foretold[settings.offset].losses]
        losses = [link(losses, settings.link) for losses in self.recorded.losses]
        return offset(foretold, losses, self.recorded.grid)

    def regression(self, settings: Settings, weights: Sequence[Array] | None = None) -> Regression:
        """``weights`` of uses, one [use] a run; those of the offset if not given."""
        if weights is None and settings.offset:
            weights = self.foretold[settings.offset].weights
        return Regression.of(
            self.train,
            self.recorded,
            self.features(settings),
            self.scores[list(settings.means)],
            with_initial=self.with_initial,
            noise_memory=settings.noise_memory,
            decay=settings.decay,
            link=settings.link,
            offset=self.offset(settings),
            weights=weights,
        )

    def simulate(
        self, settings: Settings, model: Model, curricula: Sequence[Curriculum], initial_loss: Array
    ) -> Array:
        """Losses [run, step + 1, test] under a member of the family that was fitted here."""
        by = self.foretold[settings.offset].by if settings.offset else None
        return simulate(
            model,
            self.features(settings),
            self.scores[list(settings.means)],
            self.with_initial,
            settings.decay,
            settings.link,
            self.recorded.grid,
            list(curricula),
            initial_loss,
            by.simulate(curricula, initial_loss) if by else None,
            by.teaching(curricula) if by else None,
        )

    def choose_penalty(
        self,
        settings: Settings,
        penalty: float | None = None,
        start: float = 0.01,
        weights: Sequence[Array] | None = None,
    ) -> Chosen:
        """The member with this λ, or with the one of least error: from ``start`` both ways downhill.

        Of two runs, what the other foretells is no measure of what both do: λ is at least 1.
        """
        regression = self.regression(settings, weights)
        fits: dict[float, tuple[float, Model, LeftOut | None]] = {}

        def error(value: float) -> float:
            if value not in fits:
                try:
                    model, left_out = regression.solve(value)
                except ValueError:  # numerically singular: λ too small
                    return np.inf
                fits[value] = (self._error(settings, model, left_out), model, left_out)
            return fits[value][0]

        if penalty is None and len(self.train) == 1 and self.validation is None:
            penalty = np.inf  # nothing says what curricula change
        if penalty is not None:
            error(penalty)
            if penalty not in fits:
                raise ValueError(f"the penalty {penalty:g} is too small for a stable solution")
            best = penalty
        else:
            two = self.few and len(self.train) == 2
            penalties = [value for value in PENALTIES if value >= 1 or not two]
            at = int(np.argmin(np.abs(np.log(np.array(penalties) / start))))
            for way in (-1, 1):
                while 0 <= at + way < len(penalties) and error(penalties[at + way]) < error(penalties[at]):
                    at += way
            error(np.inf)
            best = min((value for value in (penalties[at], np.inf) if value in fits), key=error)
        errors = {value: fit[0] for value, fit in fits.items()}
        return Chosen(settings, best, errors, fits[best][1], fits[best][2])

    def error_of_mean(self, members: Sequence[Chosen]) -> float:
        """``Chosen.error`` of the mean of what several members say, of two runs at least."""
        told = [member.left_out.predicted for member in members if member.left_out is not None]
        wrong = [
            np.square(np.mean(run, axis=0) - true)[1:]
            for *run, true in zip(*told, self.recorded.losses, strict=True)
        ]
        error = float(np.concatenate(wrong).mean())
        if self.validation is None:
            return error
        simulated = [self._on_validation(member.settings, member.model) for member in members]
        return self._together(error, np.mean(simulated, axis=0))

    def _error(self, settings: Settings, model: Model, left_out: LeftOut | None) -> float:
        """All-steps MSE of rollouts over the training runs, each left out, and the validation runs."""
        left_out_error = np.nan if left_out is None else left_out.error
        if self.validation is None:
            return left_out_error
        return self._together(left_out_error, self._on_validation(settings, model))

    def _on_validation(self, settings: Settings, model: Model) -> Array:
        assert self.validation is not None
        initial = self.validation.initial_loss.astype(np.float64)
        return self.simulate(settings, model, self.validation.curricula, initial)

    def _together(self, left_out_error: float, simulated: Array) -> float:
        """The error of training runs left out (NaN for none) and of validation runs as simulated."""
        runs = self.validation
        assert runs is not None
        known = np.isfinite(runs.loss[:, 1:])
        error = float(np.square(simulated - runs.loss)[:, 1:][known].mean())
        if np.isnan(left_out_error):
            return error
        together = len(self.train) + len(runs)
        return (len(self.train) * left_out_error + len(runs) * error) / together


def make_features(
    settings: Settings, n_train: int, batch_size: float, rates: Array, groups: Array | None, redundancy: Array
) -> Features:
    blocks = [block for block in settings.blocks if block != "groups" or (groups is not None and groups.size)]
    return Features(
        n_train=n_train,
        blocks=blocks,
        beta=settings.memory,
        corrected=settings.corrected,
        batch_size=batch_size,
        rates=rates if settings.rates else np.ones(1),
        groups=groups,
        redundancy=redundancy if redundancy.size else None,
    )


def common_groups(runs: RunSet) -> Array | None:
    """float [train, test]: 1 where both are of one group; None if no test example's group is trained on,
    or all are."""
    train, test = (np.asarray(table.frame["group"], dtype=str) for table in (runs.train, runs.test))
    same = (train[:, None] == test[None]) & (train != "")[:, None]
    return same.astype(np.float64) if same.any() and not same.all() else None


def as_scores(scores: Any, shape: tuple[int, int]) -> Array:
    """[array, train, test] of one or several arrays of scores, or things that have ``.scores``; or none.

    Raises ValueError for another shape, or values that are not finite.
    """
    if scores is None:
        return np.empty((0, *shape))
    several = scores if isinstance(scores, list | tuple) else [scores]
    arrays = [np.asarray(getattr(one, "scores", one), np.float64) for one in several]
    if arrays and arrays[0].ndim == 3 and len(arrays) == 1:
        arrays = list(arrays[0])
    for array in arrays:
        if array.shape != shape:
            raise ValueError(f"scores must be [train, test] = {shape}, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("scores must be finite")
    scaled = [array / max(np.sqrt(np.square(array).mean()), 1e-300) for array in arrays]
    return np.stack(scaled) if scaled else np.empty((0, *shape))
