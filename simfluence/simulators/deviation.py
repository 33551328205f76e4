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
from simfluence.simulators.alternation import cross_fitted
from simfluence.simulators.base import Array, Simulator
from simfluence.simulators.blocks import BLOCKS
from simfluence.simulators.effects import LINKS, Model, simulate
from simfluence.simulators.fitting import Chosen, Fitting, Settings, as_scores, make_features
from simfluence.simulators.memory import USUAL_MEMORY, check_beta, recorded_memory
from simfluence.simulators.offset import Foreteller
from simfluence.simulators.surrogate import Surrogate
from simfluence.simulators.tangent import Tangent, TangentTraining

_CURRICULA_AT_ONCE = 2**27  # bytes of features
FORETELLERS: dict[str, type[Foreteller]] = {
    "tangent": TangentTraining,
    "surrogate": Surrogate,  # of effects
    "replayed": Surrogate,  # of scores
}


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
    surrogate : whether a small model that has such effects, trained along each curriculum, foretells
        most of it (surrogate.py); with fewer than 4 runs its effects are the scores; there is none without
        scores then, or for losses ≤ 0.
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
        surrogate: bool = False,
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
        self.surrogate = surrogate
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
            offset="tangent" if self.tangent is not None else "",
        )
        fitting = self._fitting(train, validation)
        settings = dataclasses.replace(settings, means=tuple(range(len(fitting.scores))))
        turns = cross_fitted(fitting, (beta, corrected)) if self.surrogate else None
        if turns:
            fitting.foretold[turns.name] = turns.foretold
            settings = dataclasses.replace(settings, **turns.change)
        self._keep(fitting, fitting.choose_penalty(settings, self.penalty))

    def _fitting(self, train: RunSet, validation: RunSet | None) -> Fitting:
        """What this simulator is fitted with; subclasses have other regressions."""
        return Fitting(train, validation, self.scores_, self.redundancy_, self.max_rows, self.tangent)

    def refitted(self, train: RunSet) -> Self:
        """A copy with the same settings and penalty, fitted to other runs over the same examples."""
        fitting = self._fitting(train, None)
        other = copy.copy(self)
        other._keep(fitting, self._again(fitting))
        return other

    def _again(self, fitting: Fitting) -> Chosen:
        """The same settings and penalty."""
        settings = Settings(**self.settings_)
        if self.turns_:
            turns = cross_fitted(fitting, **self.turns_)
            if turns is None:
                settings = dataclasses.replace(settings, offset="")
            else:
                fitting.foretold[turns.name] = turns.foretold
                settings = dataclasses.replace(settings, **turns.change)
        return fitting.choose_penalty(settings, self.penalty_)

    def left_out_losses(self, train: RunSet) -> Array:
        """The training runs as simulated by fits without them, float [run, step + 1, test].

        train : the runs of the fit. Linear between the points of ``grid_``; NaN after a run's end.
        """
        losses = np.full(train.loss.shape, np.nan)
        for number, (run, told) in enumerate(zip(train, self.left_out_rollouts_, strict=True)):
            known = np.isfinite(told[:, 0])
            at = np.arange(len(run.curriculum) + 1)
            for z, values in enumerate(told[known].T):
                losses[number, : len(at), z] = np.interp(at, self.grid_[known], values)
        return losses

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
        for name in [name for name in vars(self) if name.startswith("foreteller_")]:  # of a fit before
            delattr(self, name)
        self.foreteller_: dict[str, Any] = {}
        self.turns_: dict[str, Any] = {}
        if chosen.settings.offset:
            foretold = fitting.foretold[chosen.settings.offset]
            self.turns_, self.foreteller_ = foretold.again, foretold.by.plain()
            for name, values in foretold.by.arrays().items():
                setattr(self, f"foreteller_{name}_", values)
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

    def _foreteller(self) -> Foreteller | None:
        """What the fit is offset by."""
        if not self.settings_["offset"]:
            return None
        names = [name for name in vars(self) if name.startswith("foreteller_") and name != "foreteller_"]
        arrays = {name.removeprefix("foreteller_")[:-1]: getattr(self, name) for name in names}
        return FORETELLERS[self.settings_["offset"]].restored(arrays, self.foreteller_)

    # --------------------------------------------------------------------------------- simulating

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        settings = Settings(**self.settings_)
        features = make_features(
            settings, self.n_train_, self.batch_size_, self.rates_, self.groups_, self.redundancy_
        )
        model = Model(**{f.name: getattr(self, f"{f.name}_") for f in dataclasses.fields(Model)})
        by = self._foreteller()
        steps = max(len(curriculum) for curriculum in curricula)
        size = max(1, _CURRICULA_AT_ONCE // (8 * steps * len(self.center_)))
        losses = np.full((len(curricula), steps + 1, self.n_test_), np.nan)
        for start in range(0, len(curricula), size):
            part = list(curricula[start : start + size])
            initial = initial_loss[start : start + size]
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
                by.simulate(part, initial) if by else None,
                by.teaching(part) if by else None,
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
        by = self._foreteller()
        if isinstance(by, TangentTraining):
            self.tangent = by.tangent
        self.scores = list(self.scores_) or None  # so that a loaded simulator can be fitted again
        self.redundancy = self.redundancy_ if self.redundancy_.size else None
        return self
