"""Effects of training examples on deviations from what happens in every run.

The equation stands in regression.py. What is predicted beforehand, by training dynamics, is in prior.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.links import LOSS_FLOOR, Link, check_link, link, slope
from simfluence.runs import RunSet
from simfluence.runs.schedule import RelativeRates
from simfluence.simulators.base import Array, Simulator, register, stages
from simfluence.simulators.dynamics.adjoint import pull_back
from simfluence.simulators.dynamics.cross_fit import (
    CrossFitted,
    effects_dynamics,
    scores_dynamics,
    stages_of,
)
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.effects.data import TrainingData, as_scores
from simfluence.simulators.effects.model import EffectsModel, EffectsSettings
from simfluence.simulators.effects.momentum import Momentum
from simfluence.simulators.effects.penalty import Chosen, choose_penalty
from simfluence.simulators.effects.prior import prior_prediction
from simfluence.simulators.effects.regression import EffectsFit, EffectsRegression, OutOfFold
from simfluence.simulators.scores import check_scores, portable_scores

Kernel = Literal["effects", "scores"]


@register
class EffectsSimulator(Simulator):
    """Increments of the loss = drift + effects of what the optimizer took in + noise.

    Parameters
    ----------
    scores : attribution scores [train, test] that are the mean of the effects, or a list of several; arrays,
        or anything with an attribute ``scores``. Positive lowers the loss; any units.
    kernel : of the training dynamics that predict most of what curricula change, to which effects are added.
        "effects": found in the runs by an alternating fit, with four runs or more. "scores": those given.
        None: no dynamics. There are none either for losses at or below 0, which have no log-odds.
    penalty : λ > 0 of the effects; inf is the mean trajectory. None chooses by the error on runs that were
        left out of the fit, and on the validation runs if there are any.
    momentum : β of the optimizer's momentum. None takes what the runs say of their optimizer, or .9.
    noise_correlation : κ of the noise in increments.
    decay : how freely effects change with training progress, 0 (constant) .. < 1.
    link : "identity", or "log_odds" to work with log(eᴸ − 1); None is "log_odds" where all losses are above
        0.
    max_rows : the grid of steps is thinned until the regression has about that many rows.

    Attributes
    ----------
    model_ : the fitted ``EffectsModel``. dynamics_ : the fitted ``TrainingDynamics``, or None.
    penalty_ : λ. penalty_errors_ : λ → error, where it was chosen.
    error_ : all-steps MSE of runs that were left out, and of validation runs; NaN for a single run.
    grid_ : int [point]. out_of_fold_ : float [run, point, test], each run as predicted by a fit without it;
        NaN after a run's end, no runs where only one was fitted.
    """

    name: ClassVar[str] = "effects"
    fitted: ClassVar[tuple[str, ...]] = (
        "model_",
        "dynamics_",
        "rates_",
        "penalty_",
        "penalty_errors_",
        "kernel_penalties_",
        "error_",
        "grid_",
        "out_of_fold_",
        "lengths_",
    )

    def __init__(
        self,
        scores: Any = None,
        kernel: Kernel | None = None,
        penalty: float | None = None,
        momentum: float | None = None,
        noise_correlation: float = 0.9,
        decay: float = 0.1,
        link: Link | None = None,
        max_rows: int = 2000,
    ) -> None:
        if kernel not in ("effects", "scores", None):
            raise ValueError(f"kernel must be 'effects', 'scores' or None, got {kernel!r}")
        if kernel == "scores" and scores is None:
            raise ValueError("kernel='scores' takes scores=, attribution scores [train, test]")
        if penalty is not None and not penalty > 0:
            raise ValueError(f"penalty must be a number > 0, or None to choose it; got {penalty}")
        if not 0 <= noise_correlation < 1:
            raise ValueError(f"noise_correlation must lie in 0 ≤ κ < 1, got {noise_correlation}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0 ≤ decay < 1, got {decay}")
        if momentum is not None:
            Momentum(momentum, True)  # raises ValueError outside 0 .. 1
        if link is not None:
            check_link(link)
        self.scores = scores
        self.kernel = kernel
        self.penalty = penalty
        self.momentum = momentum
        self.noise_correlation = noise_correlation
        self.decay = decay
        self.link = link
        self.max_rows = max_rows

    # ------------------------------------------------------------------------------------ fitting

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        data = self.training_data(train)
        with stages(stages_of(data) if self.kernel else 1, "fit effects") as bar:
            self._fit_to(data, validation, bar.update)

    def training_data(self, train: RunSet) -> TrainingData:
        """The runs, made ready for this simulator and others with the same scores."""
        check_scores(self.scores, train)
        return TrainingData(train, as_scores(self.scores, (len(train.train), len(train.test))), self.max_rows)

    def _fit_to(
        self, data: TrainingData, validation: RunSet | None, advance: Callable[[], Any]
    ) -> CrossFitted | None:
        cross_fitted = self._cross_fitted(data, advance, None)
        self._set_dynamics(cross_fitted, data)
        regression = self._regression(data, cross_fitted)

        def error_of(fit: EffectsFit) -> float:
            assert validation is not None
            initial = validation.initial_loss.astype(np.float64)
            simulated = self._simulate_with(fit.model, validation.curricula, initial, None)
            return pooled_error(len(data.train), fit.out_of_fold, simulated, validation)

        chosen = choose_penalty(regression, self.penalty, error_of=error_of if validation else None)
        self._set(data, chosen)
        return cross_fitted

    def refit(self, train: RunSet) -> Self:
        """A copy with the same penalties, fitted to other runs over the same examples."""
        self.check_examples(train)
        other = type(self)(**self.get_params())
        other._learn_of(train)
        data = other.training_data(train)
        cross_fitted = other._cross_fitted(data, lambda: None, self.kernel_penalties_)
        other._set_dynamics(cross_fitted, data)
        other._set(data, choose_penalty(other._regression(data, cross_fitted), self.penalty_))
        return other

    def _cross_fitted(
        self, data: TrainingData, advance: Callable[[], Any], penalties: list[float] | None
    ) -> CrossFitted | None:
        """The training dynamics; None without a kernel."""
        if self.kernel == "effects":
            return effects_dynamics(data, advance, penalties or None)
        if self.kernel == "scores":
            return scores_dynamics(data, data.given_scores, advance)
        return None

    def _regression(self, data: TrainingData, cross_fitted: CrossFitted | None) -> EffectsRegression:
        """What is left to effects."""
        settings = EffectsSettings(
            momentum=self._momentum(data),
            noise_correlation=self.noise_correlation,
            decay=self.decay,
            link=self.link or ("log_odds" if data.has_log_odds else "identity"),
            with_rates=cross_fitted is None,
        )
        if cross_fitted is None:
            return EffectsRegression(data, settings)
        predicted = [link(losses, settings.link) for losses in cross_fitted.predicted]
        prior = prior_prediction(predicted, data.levels(settings.link), data.recorded.grid)
        return EffectsRegression(data, settings, prior, cross_fitted.use_weights)

    def _momentum(self, data: TrainingData) -> Momentum:
        if self.momentum is not None:
            return Momentum(self.momentum, data.momentum.bias_correction)
        return data.momentum if self.dynamics_ is None else self.dynamics_.momentum

    def _set_dynamics(self, cross_fitted: CrossFitted | None, data: TrainingData) -> None:
        self.dynamics_: TrainingDynamics | None = cross_fitted.dynamics if cross_fitted else None
        self.kernel_penalties_: list[float] = cross_fitted.penalties if cross_fitted else []
        self.rates_: RelativeRates = data.rates

    def _set(self, data: TrainingData, chosen: Chosen) -> None:
        self.model_: EffectsModel = chosen.fit.model
        self.penalty_ = chosen.penalty
        self.penalty_errors_ = {f"{p:g}": error for p, error in sorted(chosen.errors.items())}
        self.error_ = chosen.error
        self.grid_ = data.recorded.grid
        self.lengths_ = [len(run) for run in data.train]
        runs = [] if chosen.fit.out_of_fold is None else chosen.fit.out_of_fold.predicted
        self.out_of_fold_ = np.full((len(runs), len(self.grid_), data.shape[1]), np.nan)
        for number, losses in enumerate(runs):
            self.out_of_fold_[number, : len(losses)] = losses

    # --------------------------------------------------------------------------------- predictions

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        return self._simulate_with(self.model_, curricula, initial_loss, learning_rate)

    def _simulate_with(
        self,
        model: EffectsModel,
        curricula: Sequence[Curriculum],
        initial_loss: Array,
        learning_rate: npt.ArrayLike | None,
    ) -> Array:
        steps = max(len(curriculum) for curriculum in curricula)
        rates = self.rates_.at(len(curricula), steps, learning_rate)
        if self.dynamics_ is None:
            own = rates if model.settings.with_rates else np.ones_like(rates)
            return model.simulate(curricula, initial_loss, own)
        prior = self.dynamics_.simulate(curricula, rates)
        weights = self.dynamics_.use_weights(curricula, rates)
        return model.simulate(curricula, initial_loss, np.ones_like(rates), prior, weights)

    def first_order(
        self,
        curriculum: Curriculum,
        initial_loss: Array,
        steps: npt.NDArray[np.int64],
        examples: npt.NDArray[np.int64],
        learning_rate: npt.ArrayLike | None = None,
    ) -> Array:
        """What one more use changes to first order (:meth:`Simulator.first_order`): by the effect of the use,
        and by what it changes of the training dynamics and so of what all later uses count.
        """
        model, dynamics = self.model_, self.dynamics_
        rates = np.array(self.rates_.at(1, len(curriculum), learning_rate))
        of_loss = slope(self.simulate([curriculum], initial_loss, learning_rate)[0, -1], model.settings.link)
        if dynamics is None:
            own = rates[0] if model.settings.with_rates else np.ones(len(curriculum))
            return model.use_effects(curriculum, own, steps, examples) * of_loss
        gammas, ones = dynamics.gamma(rates)[0], np.ones(len(curriculum))
        of_step = np.repeat(np.arange(len(curriculum)), curriculum.batch_sizes)
        own_uses, own_asked = (
            model.use_effects(curriculum, ones, at, rows) * (gammas[at] / dynamics.usual)[:, None]
            for at, rows in ((of_step, curriculum.examples), (steps, examples))
        )
        prior = dynamics.simulate([curriculum], rates)[0, -1]
        by_prior = slope(prior, "log_odds")
        if model.settings.link == "log_odds":
            by_prior = (prior >= LOSS_FLOOR).astype(np.float64)
        end = (model.prior_slope_at(len(curriculum)) * by_prior)[:, None] * dynamics.on_state()
        found = pull_back(dynamics, curriculum, gammas, end, own_uses, (steps, examples), own_asked)
        return found * of_loss

    def out_of_fold(self, train: RunSet) -> Array:
        """The training runs, each as predicted by a fit that has not seen it, float [run, step + 1, test].

        train : the runs that this simulator was fitted to. Linear between the points of ``grid_``; NaN after
        a run's end. Raises ValueError for other runs, or a single one.
        """
        self.check_examples(train)
        return on_every_step(self.out_of_fold_, self.grid_, self.lengths_, train)

    # ------------------------------------------------------------------------------ keeping it

    def _portable_params(self) -> dict[str, Any]:
        return {**self.get_params(), "scores": portable_scores(self.scores)}


def on_every_step(
    out_of_fold: Array, grid: npt.NDArray[np.int64], lengths: Sequence[int], train: RunSet
) -> Array:
    """Out-of-fold predictions [run, point, test] of the training runs, interpolated to [run, step + 1, test].

    Raises ValueError unless ``train`` are that many runs of these lengths.
    """
    if len(out_of_fold) != len(train) or list(lengths) != [len(run) for run in train]:
        raise ValueError(
            f"out-of-fold predictions are of the {len(out_of_fold)} runs of the fit, two at least;"
            " these are other runs"
        )
    losses = np.full(train.loss.shape, np.nan)
    for number, (run, predicted) in enumerate(zip(train, out_of_fold, strict=True)):
        known = np.isfinite(predicted[:, 0])
        at = np.arange(len(run) + 1)
        for z, values in enumerate(predicted[known].T):
            losses[number, : len(at), z] = np.interp(at, grid[known], values)
    return losses


def pooled_error(runs: int, out_of_fold: OutOfFold | None, simulated: Array, validation: RunSet) -> float:
    """All-steps MSE of training runs left out of the fit and of validation runs, every run counting alike."""
    known = np.isfinite(validation.loss[:, 1:])
    error = float(np.square(simulated - validation.loss)[:, 1:][known].mean())
    if out_of_fold is None:
        return error
    return (runs * out_of_fold.error + len(validation) * error) / (runs + len(validation))
