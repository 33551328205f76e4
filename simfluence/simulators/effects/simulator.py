"""Deviations from what happens in every run: effects of examples with the optimizer's momentum.

The model and its equation are in regression.py, its features in blocks.py, the optimizer's momentum in
momentum.py. ``EffectsSimulator`` fits it under given settings; ``AutoSimulator`` (auto.py) chooses them.
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
from simfluence.simulators.dynamics.cross_fit import cross_fitted
from simfluence.simulators.dynamics.linearised import LinearisedModel, LinearisedTraining
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.effects.features import BLOCKS
from simfluence.simulators.effects.fitting import Chosen, Fitting, Settings, as_scores, make_features
from simfluence.simulators.effects.model import LINKS, Model, simulate
from simfluence.simulators.effects.momentum import USUAL_MOMENTUM, check_beta, recorded_momentum
from simfluence.simulators.effects.prior import Predictor

_CURRICULA_AT_ONCE = 2**27  # bytes of features
PREDICTORS: dict[str, type[Predictor]] = {
    "linearised": LinearisedTraining,
    "dynamics": TrainingDynamics,  # of effects
    "replayed": TrainingDynamics,  # of scores
}


class EffectsSimulator(Simulator):
    """Increments = drift + effects of what the optimizer remembers of the curriculum + noise.

    Parameters
    ----------
    scores : attribution scores [train, test] that are the mean of the effects, or a list of several;
        arrays or anything with an attribute ``scores``. Positive lowers the loss; any units.
    penalty : λ > 0 of the effects; inf is the mean trajectory. None chooses by leave-one-run-out
        rollouts, and rollouts on the validation runs if there are any.
    momentum : β of the optimizer's momentum. None takes what the runs say of their optimizer, or .9.
    noise_correlation : κ of the noise in increments.
    decay : how freely effects change with training progress, 0 (constant) .. < 1 (blocks.py).
    link : "identity", or "log_odds" to work with log(eᴸ − 1).
    blocks : of "examples", "groups", "seen"; examples are always in.
    redundancy : [train, train] ≥ 0 for the block "seen"; row i: how much use of j counts as use of i.
    linearised : Jacobians (``attribution.linearised``) that predicts most of what a curriculum changes; the
        effects are fitted to the rest.
    dynamics : whether a small model that has such effects, trained along each curriculum, predicts
        most of it (dynamics.py); with fewer than 4 runs its effects are the scores; there is none without
        scores then, or for losses ≤ 0.
    max_rows : the grid of steps is thinned until the regression has about that many rows.

    Attributes
    ----------
    settings_ : what was used. penalty_ : λ. penalty_errors_ : λ → error, where it was chosen.
    error_ : all-steps MSE of the leave-one-run-out rollouts, None for a single run.
    effects_, drift_, … : the fields of ``effects.Model``.
    out_of_fold_losses_ : float [run, point of ``grid_``, test], each run as simulated by a fit without it;
        NaN after a run's end.
    """

    name: ClassVar[str] = "effects"
    center_: Array

    def __init__(
        self,
        scores: Any = None,
        penalty: float | None = None,
        momentum: float | None = None,
        noise_correlation: float = 0.9,
        decay: float = 0.3,
        link: str = "identity",
        blocks: Sequence[str] = ("examples",),
        redundancy: npt.ArrayLike | None = None,
        linearised: LinearisedModel | None = None,
        dynamics: bool = False,
        max_rows: int = 4000,
    ) -> None:
        if penalty is not None and not penalty > 0:
            raise ValueError(f"penalty must be a number > 0, or None to choose it; got {penalty}")
        for beta in (momentum, noise_correlation):
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
        self.momentum = momentum
        self.noise_correlation = noise_correlation
        self.decay = decay
        self.link = link
        self.blocks = list(blocks)
        self.redundancy = redundancy
        self.linearised = linearised
        self.dynamics = dynamics
        self.max_rows = max_rows

    # ------------------------------------------------------------------------------------ fitting

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        self._read_arrays()
        beta, corrected = recorded_momentum(train) or (USUAL_MOMENTUM, True)
        if self.momentum is not None:
            beta = self.momentum
        settings = Settings(
            blocks=tuple(block for block in BLOCKS if block == "examples" or block in self.blocks),
            momentum=beta,
            corrected=corrected,
            noise_correlation=self.noise_correlation,
            decay=self.decay,
            link=self.link,
            prior="linearised" if self.linearised is not None else "",
        )
        fitting = self._fitting(train, validation)
        settings = dataclasses.replace(settings, means=tuple(range(len(fitting.scores))))
        rounds = cross_fitted(fitting, (beta, corrected)) if self.dynamics else None
        if rounds:
            fitting.predicted_before[rounds.name] = rounds.predicted_before
            settings = dataclasses.replace(settings, **rounds.change)
        self._keep(fitting, fitting.choose_penalty(settings, self.penalty))

    def _fitting(self, train: RunSet, validation: RunSet | None) -> Fitting:
        """What this simulator is fitted with; subclasses have other regressions."""
        return Fitting(train, validation, self.scores_, self.redundancy_, self.max_rows, self.linearised)

    def refit(self, train: RunSet) -> Self:
        """A copy with the same settings and penalty, fitted to other runs over the same examples."""
        fitting = self._fitting(train, None)
        other = copy.copy(self)
        other._keep(fitting, self._again(fitting))
        return other

    def _again(self, fitting: Fitting) -> Chosen:
        """The same settings and penalty."""
        settings = Settings(**self.settings_)
        if self.rounds_:
            rounds = cross_fitted(fitting, **self.rounds_)
            if rounds is None:
                settings = dataclasses.replace(settings, prior="")
            else:
                fitting.predicted_before[rounds.name] = rounds.predicted_before
                settings = dataclasses.replace(settings, **rounds.change)
        return fitting.choose_penalty(settings, self.penalty_)

    def out_of_fold(self, train: RunSet) -> Array:
        """The training runs as simulated by fits without them, float [run, step + 1, test].

        train : the runs of the fit. Linear between the points of ``grid_``; NaN after a run's end.
        """
        losses = np.full(train.loss.shape, np.nan)
        for number, (run, predicted_now) in enumerate(zip(train, self.out_of_fold_losses_, strict=True)):
            known = np.isfinite(predicted_now[:, 0])
            at = np.arange(len(run.curriculum) + 1)
            for z, values in enumerate(predicted_now[known].T):
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

        if (linearised := self.linearised) is not None and (linearised.n_train, linearised.n_test) != shape:
            raise ValueError(
                f"the linearised is of {linearised.n_train} training and {linearised.n_test} test examples;"
                f" these runs have {shape[0]} and {shape[1]}"
            )

    def _keep(self, fitting: Fitting, chosen: Chosen) -> None:
        """Everything that simulating and saving take, as fitted attributes."""
        self.settings_ = dataclasses.asdict(chosen.settings)
        for name in [name for name in vars(self) if name.startswith("predictor_")]:  # of a fit before
            delattr(self, name)
        self.predictor_: dict[str, Any] = {}
        self.rounds_: dict[str, Any] = {}
        if chosen.settings.prior:
            predicted_before = fitting.predicted_before[chosen.settings.prior]
            self.rounds_, self.predictor_ = predicted_before.again, predicted_before.by.plain()
            for name, values in predicted_before.by.arrays().items():
                setattr(self, f"predictor_{name}_", values)
        self.shared_group_ = fitting.scores[len(self.scores_) :]
        self.penalty_ = chosen.penalty
        self.penalty_errors_ = {f"{p:g}": error for p, error in sorted(chosen.errors.items())}
        self.error_ = None if chosen.out_of_fold is None else chosen.out_of_fold.error
        for field in dataclasses.fields(Model):
            setattr(self, f"{field.name}_", getattr(chosen.model, field.name))
        self.grid_ = fitting.recorded.grid
        self.rates_, self.batch_size_ = fitting.rates, fitting.batch_size
        self.groups_ = np.empty((0, 0)) if fitting.groups is None else fitting.groups
        self.with_initial_ = fitting.with_initial
        points = len(self.grid_)
        runs = [] if chosen.out_of_fold is None else chosen.out_of_fold.predicted
        self.out_of_fold_losses_ = np.full((len(runs), points, self.n_test_), np.nan)
        for number, losses in enumerate(runs):
            self.out_of_fold_losses_[number, : len(losses)] = losses

    def _predictor(self) -> Predictor | None:
        """What the fit is prior by."""
        if not self.settings_["prior"]:
            return None
        names = [name for name in vars(self) if name.startswith("predictor_") and name != "predictor_"]
        arrays = {name.removeprefix("predictor_")[:-1]: getattr(self, name) for name in names}
        return PREDICTORS[self.settings_["prior"]].restored(arrays, self.predictor_)

    # --------------------------------------------------------------------------------- simulating

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        settings = Settings(**self.settings_)
        features = make_features(
            settings, self.n_train_, self.batch_size_, self.rates_, self.groups_, self.redundancy_
        )
        model = Model(**{f.name: getattr(self, f"{f.name}_") for f in dataclasses.fields(Model)})
        by = self._predictor()
        steps = max(len(curriculum) for curriculum in curricula)
        size = max(1, _CURRICULA_AT_ONCE // (8 * steps * len(self.center_)))
        losses = np.full((len(curricula), steps + 1, self.n_test_), np.nan)
        for start in range(0, len(curricula), size):
            part = list(curricula[start : start + size])
            initial = initial_loss[start : start + size]
            simulated = simulate(
                model,
                features,
                np.concatenate([self.scores_, self.shared_group_])[list(settings.means)],
                self.with_initial_,
                settings.decay,
                settings.link,
                self.grid_,
                part,
                initial,
                by.simulate(part, initial) if by else None,
                by.example_residuals(part) if by else None,
            )
            losses[start : start + size, : simulated.shape[1]] = simulated
        return losses

    # ------------------------------------------------------------------------------ keeping it

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments; arrays are kept with the fitted values and left out here."""
        arrays = {"scores": None, "redundancy": None, "linearised": None}
        return {name: arrays.get(name, value) for name, value in super().get_params().items()}

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> Self:
        super()._restore(arrays, plain)
        by = self._predictor()
        if isinstance(by, LinearisedTraining):
            self.linearised = by.linearised
        self.scores = list(self.scores_) or None  # so that a loaded simulator can be fitted again
        self.redundancy = self.redundancy_ if self.redundancy_.size else None
        return self
