"""Deviations from what happens in every run: effects of examples with the optimizer's memory.

The model and its equation are in regression.py, its features in blocks.py, the optimizer's memory in
memory.py. ``DeviationSimulator`` fits it under given settings; ``AutoSimulator`` (auto.py) chooses them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator
from simfluence.simulators.blocks import BLOCKS, Features, membership
from simfluence.simulators.design import Recorded, record_on_grid
from simfluence.simulators.effects import LINKS, Model, link, simulate
from simfluence.simulators.memory import check_beta, recorded_memory, relative_rates
from simfluence.simulators.offset import Offset, offset
from simfluence.simulators.regression import LeftOut, Regression
from simfluence.simulators.tangent import Tangent, Update, recorded_update

PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-4, 3.5, 0.5))
USUAL_MEMORY = 0.9  # Adam's default β₁, where the optimizer is not known
_CURRICULA_AT_ONCE = 2**27  # bytes of features
_TANGENT = "tangent_"  # begins the names of its arrays among the fitted values


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
    tangent: bool = True  # whether to use it, if there is one


class DeviationSimulator(Simulator):
    """Increments = drift + effects of what the optimizer remembers of the curriculum + noise.

    Parameters
    ----------
    scores : attribution scores [train, test] that are the mean of the effects, or a list of several;
        arrays or anything with an attribute ``scores``. Positive lowers the loss; any units.
    penalty : λ > 0 of the effects; inf is the mean trajectory. None chooses by leave-one-run-out
        rollouts, and rollouts on the validation runs if there are any.
    memory : β of the optimizer's memory. None takes what the runs say of their optimizer, or .9.
    noise_memory : κ of the noise in increments.
    decay : how freely effects change with training progress, 0 (constant) .. < 1 (blocks.py).
    link : "identity", or "log_odds" to work with log(eᴸ − 1).
    blocks : of "examples", "groups", "seen"; examples are always in.
    redundancy : [train, train] ≥ 0 for the block "seen"; row i: how much use of j counts as use of i.
    tangent : Jacobians (``attribution.tangent``) that foretell most of what a curriculum changes; the
        effects are fitted to the rest.
    max_rows : the grid of steps is thinned until the regression has about that many rows.

    Attributes
    ----------
    settings_ : what was used. penalty_ : λ. penalty_errors_ : λ → error, where it was chosen.
    error_ : all-steps MSE of the leave-one-run-out rollouts, None for a single run.
    effects_, drift_, … : the fields of ``effects.Model``.
    left_out_rollouts_ : float [run, point of ``grid_``, test], each run as simulated by a fit without it;
        NaN after a run's end.
    """

    name: ClassVar[str] = "deviation"
    center_: Array

    def __init__(
        self,
        scores: Any = None,
        penalty: float | None = None,
        memory: float | None = None,
        noise_memory: float = 0.9,
        decay: float = 0.3,
        link: str = "identity",
        blocks: Sequence[str] = ("examples",),
        redundancy: npt.ArrayLike | None = None,
        tangent: Tangent | None = None,
        max_rows: int = 4000,
    ) -> None:
        if penalty is not None and not penalty > 0:
            raise ValueError(f"penalty must be a number > 0, or None to choose it; got {penalty}")
        for beta in (memory, noise_memory):
            if beta is not None:
                check_beta(beta)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0 ≤ decay < 1, got {decay}")
        if link not in LINKS:
            raise ValueError(f"link must be one of {LINKS}, got {link!r}")
        if unknown := set(blocks) - set(BLOCKS):
            raise ValueError(f"blocks must be of {BLOCKS}, got {sorted(unknown)}")
        self.scores = scores
        self.penalty = penalty
        self.memory = memory
        self.noise_memory = noise_memory
        self.decay = decay
        self.link = link
        self.blocks = list(blocks)
        self.redundancy = redundancy
        self.tangent = tangent
        self.max_rows = max_rows

    # ------------------------------------------------------------------------------------ fitting

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        self._read_arrays()
        beta, corrected = recorded_memory(train) or (USUAL_MEMORY, True)
        if self.memory is not None:
            beta = self.memory
        settings = Settings(
            blocks=tuple(block for block in BLOCKS if block == "examples" or block in self.blocks),
            memory=beta,
            corrected=corrected,
            noise_memory=self.noise_memory,
            decay=self.decay,
            link=self.link,
        )
        fitting = self._fitting(train, validation)
        settings = dataclasses.replace(settings, means=tuple(range(len(fitting.scores))))
        self._keep(fitting, fitting.choose_penalty(settings, self.penalty))

    def _fitting(self, train: RunSet, validation: RunSet | None) -> Fitting:
        """What this simulator is fitted with; subclasses have other regressions."""
        return Fitting(train, validation, self.scores_, self.redundancy_, self.max_rows, self.tangent)

    def refitted(self, train: RunSet) -> Self:
        """A copy with the same settings and penalty, fitted to other runs over the same examples."""
        fitting = self._fitting(train, None)
        other = copy.copy(self)
        other._keep(fitting, fitting.choose_penalty(Settings(**self.settings_), self.penalty_))
        return other

    def _read_arrays(self) -> None:
        shape = (self.n_train_, self.n_test_)
        self.scores_ = as_scores(self.scores, shape)
        self.redundancy_ = np.empty((0, 0))
        if self.redundancy is not None:
            self.redundancy_ = np.array(self.redundancy, np.float64)
            if self.redundancy_.shape != (shape[0], shape[0]) or not (self.redundancy_ >= 0).all():
                raise ValueError(
                    f"redundancy must be [train, train] = ({shape[0]}, {shape[0]}) and ≥ 0,"
                    f" got shape {self.redundancy_.shape}"
                )

        if (tangent := self.tangent) is not None and (tangent.n_train, tangent.n_test) != shape:
            raise ValueError(
                f"the tangent is of {tangent.n_train} training and {tangent.n_test} test examples;"
                f" these runs have {shape[0]} and {shape[1]}"
            )

    def _keep(self, fitting: Fitting, chosen: Chosen) -> None:
        """Everything that simulating and saving take, as fitted attributes."""
        self.settings_ = dataclasses.asdict(chosen.settings)
        self.tangent_: dict[str, Any] = {}
        if fitting.tangent is not None and fitting.update is not None:
            self.tangent_ = {"update": dataclasses.asdict(fitting.update), **fitting.tangent.plain()}
            self.learning_rates_ = fitting.learning_rates
            for name, values in fitting.tangent.arrays().items():
                setattr(self, f"{_TANGENT}{name}_", values)
        self.kinship_ = fitting.scores[len(self.scores_) :]
        self.penalty_ = chosen.penalty
        self.penalty_errors_ = {f"{p:g}": error for p, error in sorted(chosen.errors.items())}
        self.error_ = None if chosen.left_out is None else chosen.left_out.error
        for field in dataclasses.fields(Model):
            setattr(self, f"{field.name}_", getattr(chosen.model, field.name))
        self.grid_ = fitting.recorded.grid
        self.rates_, self.batch_size_ = fitting.rates, fitting.batch_size
        self.groups_ = np.empty((0, 0)) if fitting.groups is None else fitting.groups
        self.with_initial_ = fitting.with_initial
        points = len(self.grid_)
        runs = [] if chosen.left_out is None else chosen.left_out.predicted
        self.left_out_rollouts_ = np.full((len(runs), points, self.n_test_), np.nan)
        for number, losses in enumerate(runs):
            self.left_out_rollouts_[number, : len(losses)] = losses

    # --------------------------------------------------------------------------------- simulating

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        settings = Settings(**self.settings_)
        features = make_features(
            settings, self.n_train_, self.batch_size_, self.rates_, self.groups_, self.redundancy_
        )
        model = Model(**{f.name: getattr(self, f"{f.name}_") for f in dataclasses.fields(Model)})
        steps = max(len(curriculum) for curriculum in curricula)
        size = max(1, _CURRICULA_AT_ONCE // (8 * steps * len(self.center_)))
        losses = np.full((len(curricula), steps + 1, self.n_test_), np.nan)
        for start in range(0, len(curricula), size):
            part = list(curricula[start : start + size])
            initial = initial_loss[start : start + size]
            foretold = None
            if self.tangent is not None and settings.tangent:
                update = Update(**self.tangent_["update"])
                foretold = self.tangent.simulate(part, initial, update, self.learning_rates_)
            simulated = simulate(
                model,
                features,
                np.concatenate([self.scores_, self.kinship_])[list(settings.means)],
                self.with_initial_,
                settings.decay,
                settings.link,
                self.grid_,
                part,
                initial,
                foretold,
            )
            losses[start : start + size, : simulated.shape[1]] = simulated
        return losses

    # ------------------------------------------------------------------------------ keeping it

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments; arrays are kept with the fitted values and left out here."""
        arrays = {"scores": None, "redundancy": None, "tangent": None}
        return {name: arrays.get(name, value) for name, value in super().get_params().items()}

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> Self:
        super()._restore(arrays, plain)
        if self.tangent_:
            names = [name for name in arrays if name.startswith(_TANGENT)]
            self.tangent = Tangent.restored(
                {name.removeprefix(_TANGENT)[:-1]: arrays[name] for name in names}, self.tangent_
            )
        self.scores = list(self.scores_) or None  # so that a loaded simulator can be fitted again
        self.redundancy = self.redundancy_ if self.redundancy_.size else None
        return self


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
        kinship = common_groups(train)
        self.scores = scores if kinship is None else np.concatenate([scores, kinship[None]])
        self.redundancy = redundancy
        self.recorded: Recorded = record_on_grid(train, max_rows)
        self.batch_size = float(np.median(np.concatenate([c.batch_sizes for c in train.curricula])))
        self.rates = relative_rates(train)
        self.groups = membership(train.train.frame["group"].tolist())
        start = np.stack([losses[0] for losses in self.recorded.losses])
        later = np.concatenate([losses[1:] - start.mean(0) for losses in self.recorded.losses])
        self.with_initial = bool(len(train) > 2 and start.std(0).mean() > 0.02 * later.std(0).mean())
        self.tangent, self.update, self.learning_rates = tangent, None, np.empty(0)
        self.foretold: list[Array] = []
        if tangent is not None:
            self.update, self.learning_rates = recorded_update(train)
            names = [run.id for run in train]
            losses = tangent.simulate(train.curricula, start, self.update, self.learning_rates, names)
            self.foretold = [losses[number, : len(run) + 1] for number, run in enumerate(train)]

    def offset(self, settings: Settings) -> Offset | None:
        """What the tangent foretells of the training runs, in the link's space."""
        if self.tangent is None or not settings.tangent:
            return None
        foretold = [link(losses, settings.link) for losses in self.foretold]
        losses = [link(losses, settings.link) for losses in self.recorded.losses]
        return offset(foretold, losses, self.recorded.grid)

    def features(self, settings: Settings) -> Features:
        n_train = len(self.train.train)
        return make_features(settings, n_train, self.batch_size, self.rates, self.groups, self.redundancy)

    def regression(self, settings: Settings) -> Regression:
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
        )

    def simulate(
        self, settings: Settings, model: Model, curricula: Sequence[Curriculum], initial_loss: Array
    ) -> Array:
        """Losses [run, step + 1, test] under a member of the family that was fitted here."""
        foretold = None
        if self.tangent is not None and self.update is not None and settings.tangent:
            foretold = self.tangent.simulate(curricula, initial_loss, self.update, self.learning_rates)
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
            foretold,
        )

    def choose_penalty(self, settings: Settings, penalty: float | None = None, start: float = 0.01) -> Chosen:
        """The member with this λ, or with the one of least error: from ``start`` both ways downhill."""
        regression = self.regression(settings)
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
            at = int(np.argmin(np.abs(np.log(np.array(PENALTIES) / start))))
            for way in (-1, 1):
                while 0 <= at + way < len(PENALTIES) and error(PENALTIES[at + way]) < error(PENALTIES[at]):
                    at += way
            best = min((PENALTIES[at], np.inf), key=error)
        errors = {value: fit[0] for value, fit in fits.items()}
        return Chosen(settings, best, errors, fits[best][1], fits[best][2])

    def _error(self, settings: Settings, model: Model, left_out: LeftOut | None) -> float:
        """All-steps MSE of rollouts over the training runs, each left out, and the validation runs."""
        left_out_error = np.nan if left_out is None else left_out.error
        if self.validation is None:
            return left_out_error
        runs = self.validation
        simulated = self.simulate(settings, model, runs.curricula, runs.initial_loss.astype(np.float64))
        known = np.isfinite(runs.loss[:, 1:])
        error = float(np.square(simulated - runs.loss)[:, 1:][known].mean())
        if left_out is None:
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
