"""A simulator of what the linearised model predicts, and of effects beside it.

The linearised model is not fitted, so its predictions of the training runs are out of fold. Its deviations
from its mean over the runs, times a fitted c(t), are the prior prediction (simulators/effects/prior.py). An
effects regression may be fitted to what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from linearised.model import LinearisedModel
from linearised.update import Update
from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.links import log_odds
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator
from simfluence.simulators.effects.data import TrainingData
from simfluence.simulators.effects.model import EffectsSettings
from simfluence.simulators.effects.penalty import choose_penalty
from simfluence.simulators.effects.prior import prior_prediction
from simfluence.simulators.effects.regression import EffectsRegression

_MAX_ROWS = 2000  # of the regression: the grid of steps is thinned to fit


class LinearisedSimulator(Simulator):
    """Mean trajectory + c(t) · deviations that a linearised model predicts + effects, in log-odds.

    It is not registered, so it cannot be saved. Validation runs are not used.

    Parameters
    ----------
    linearised : the linearised model of the runs, at the weights that they began at.
    penalty : λ > 0 of the effects; inf is the linearised model alone; None chooses by the error out of fold.

    Attributes
    ----------
    model_ : the fitted ``EffectsModel``. penalty_ : λ. error_ : all-steps MSE out of fold; NaN for one run.

    Raises
    ------
    RunDataError : in ``fit``, for losses ≤ 0, or if optimizers or learning rates are unknown or unsupported.
    ValueError : in ``fit``, if the linearised model is about other numbers of examples.
    """

    name: ClassVar[str] = "linearised"
    fitted: ClassVar[tuple[str, ...]] = ("model_", "penalty_", "error_", "rates_", "update_")

    def __init__(self, linearised: LinearisedModel, penalty: float | None = np.inf) -> None:
        self.linearised = linearised
        self.penalty = penalty

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        shape = (len(self.linearised.train_jacobian), len(self.linearised.test_jacobian))
        data = TrainingData(train, np.empty((0, *shape)), _MAX_ROWS)
        if data.shape != shape:
            raise ValueError(
                f"expected runs of {shape[0]} training and {shape[1]} test examples, got {data.shape}"
            )
        if not data.has_log_odds:
            raise RunDataError(
                "the linearised model takes losses −log p, all above 0; some recorded ones are not"
            )
        if np.isnan(data.rates.usual):
            raise RunDataError("the runs did not log their learning rates, which the linearised model needs")
        self.update_, self.rates_ = Update.of_runs(train), data.rates
        losses = self._linearised(train.curricula, train.initial_loss, data.run_rates)
        predicted = [log_odds(own[: len(run) + 1]) for own, run in zip(losses, train, strict=True)]
        prior = prior_prediction(predicted, data.levels("log_odds"), data.recorded.grid)
        chosen = choose_penalty(EffectsRegression(data, EffectsSettings(data.momentum), prior), self.penalty)
        self.model_, self.penalty_, self.error_ = chosen.fit.model, chosen.penalty, chosen.error

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        steps = max(len(curriculum) for curriculum in curricula)
        rates = self.rates_.at(len(curricula), steps, learning_rate)
        prior = self._linearised(curricula, initial_loss, rates)
        return self.model_.simulate(curricula, initial_loss, rates, prior)

    def _linearised(self, curricula: Sequence[Curriculum], initial_loss: Array, rates: Array) -> Array:
        """The losses that the linearised model predicts; ``rates`` are relative [run, step]."""
        return self.linearised.simulate(curricula, initial_loss, self.update_, rates * self.rates_.usual)
