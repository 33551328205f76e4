"""Fitting members of the deviation family to recorded runs: what is shared by all settings, made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, usual_batch_size
from simfluence.runs import RunSet
from simfluence.simulators.dynamics.linearised import LinearisedModel, LinearisedTraining
from simfluence.simulators.effects.features import Features, membership
from simfluence.simulators.effects.grid import Recorded, record_on_grid
from simfluence.simulators.effects.model import Model, link, simulate
from simfluence.simulators.effects.momentum import USUAL_MOMENTUM, relative_rates
from simfluence.simulators.effects.prior import Predicted, PriorPrediction, prior_prediction
from simfluence.simulators.effects.regression import OutOfFold, Regression

FEWEST_RUNS = 4  # that can tell effects that hold by leaving one out
PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-4, 3.5, 0.5))

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Settings:
    """One member of the family. See ``EffectsSimulator`` for what they mean."""

    blocks: tuple[str, ...] = ("examples",)
    momentum: float = USUAL_MOMENTUM
    corrected: bool = True
    noise_correlation: float = 0.9
    decay: float = 0.3
    link: str = "identity"
    rates: bool = True
    means: tuple[int, ...] = ()  # which of the scores, see Fitting.scores
    prior: Literal["", "linearised", "dynamics", "replayed"] = ""  # what predicts most of it (prior.py)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A fitted member of the family; errors: λ → all-steps MSE of those tried."""

    settings: Settings
    penalty: float
    errors: dict[float, float]
    model: Model
    out_of_fold: OutOfFold | None

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
        linearised: LinearisedModel | None = None,
    ) -> None:
        self.train = train
        self.validation = validation
        self.few = len(train) < FEWEST_RUNS and validation is None
        shared_group = common_groups(train)
        self.given_scores, self._max_rows = scores, max_rows
        self.scores = scores if shared_group is None else np.concatenate([scores, shared_group[None]])
        self.redundancy = redundancy
        self.recorded: Recorded = record_on_grid(train, max_rows)
        self.batch_size = usual_batch_size(train.curricula)
        self.rates = relative_rates(train)
        self.groups = membership(train.train.frame["group"].tolist())
        start = np.stack([losses[0] for losses in self.recorded.losses])
        later = np.concatenate([losses[1:] - start.mean(0) for losses in self.recorded.losses])
        self.with_initial = bool(len(train) > 2 and start.std(0).mean() > 0.02 * later.std(0).mean())
        self.predicted_before: dict[str, Predicted] = {}
        if linearised is not None:
            training = LinearisedTraining.as_recorded(linearised, train)
            losses = training.simulate(train.curricula, start, [run.id for run in train])
            predicted_now = [losses[number, : len(run) + 1] for number, run in enumerate(train)]
            self.predicted_before["linearised"] = Predicted(training, predicted_now)

    def without(self, runs: npt.NDArray[np.int64]) -> Fitting:
        """The other runs, on about the same grid; without validation runs and predictor."""
        others = np.setdiff1d(np.arange(len(self.train)), runs)
        rows = self._max_rows * len(others) // len(self.train)
        return Fitting(self.train[others], None, self.given_scores, self.redundancy, rows)

    # ------------------------------------------------------------------------------------ fitting

    def features(self, settings: Settings) -> Features:
        n_train = len(self.train.train)
        return make_features(settings, n_train, self.batch_size, self.rates, self.groups, self.redundancy)

    def prior_prediction(self, settings: Settings) -> PriorPrediction | None:
        """What is predicted_before of the training runs, in the link's space."""
        if not settings.prior:
            return None
        predicted_before = [
            link(losses, settings.link) for losses in self.predicted_before[settings.prior].losses
        ]
        losses = [link(losses, settings.link) for losses in self.recorded.losses]
        return prior_prediction(predicted_before, losses, self.recorded.grid)

    def regression(self, settings: Settings, weights: Sequence[Array] | None = None) -> Regression:
        """``weights`` of uses, one [use] a run; those of the prior if not given."""
        if weights is None and settings.prior:
            weights = self.predicted_before[settings.prior].weights
        return Regression.of(
            self.train,
            self.recorded,
            self.features(settings),
            self.scores[list(settings.means)],
            with_initial=self.with_initial,
            noise_correlation=settings.noise_correlation,
            decay=settings.decay,
            link=settings.link,
            prior=self.prior_prediction(settings),
            weights=weights,
        )

    def simulate(
        self, settings: Settings, model: Model, curricula: Sequence[Curriculum], initial_loss: Array
    ) -> Array:
        """Losses [run, step + 1, test] under a member of the family that was fitted here."""
        by = self.predicted_before[settings.prior].by if settings.prior else None
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
            by.example_residuals(curricula) if by else None,
        )

    def choose_penalty(
        self,
        settings: Settings,
        penalty: float | None = None,
        start: float = 0.01,
        weights: Sequence[Array] | None = None,
    ) -> Chosen:
        """The member with this λ, or with the one of least error: from ``start`` both ways downhill.

        Of two runs, what the other predicts is no measure of what both do: λ is at least 1.
        """
        regression = self.regression(settings, weights)
        fits: dict[float, tuple[float, Model, OutOfFold | None]] = {}

        def error(value: float) -> float:
            if value not in fits:
                try:
                    model, out_of_fold = regression.solve(value)
                except ValueError:  # numerically singular: λ too small
                    return np.inf
                fits[value] = (self._error(settings, model, out_of_fold), model, out_of_fold)
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
        predicted_now = [member.out_of_fold.predicted for member in members if member.out_of_fold is not None]
        wrong = [
            np.square(np.mean(run, axis=0) - true)[1:]
            for *run, true in zip(*predicted_now, self.recorded.losses, strict=True)
        ]
        error = float(np.concatenate(wrong).mean())
        if self.validation is None:
            return error
        simulated = [self._on_validation(member.settings, member.model) for member in members]
        return self._together(error, np.mean(simulated, axis=0))

    def _error(self, settings: Settings, model: Model, out_of_fold: OutOfFold | None) -> float:
        """All-steps MSE of rollouts over the training runs, each left out, and the validation runs."""
        left_out_error = np.nan if out_of_fold is None else out_of_fold.error
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
        beta=settings.momentum,
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
