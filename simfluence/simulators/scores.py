"""Attribution scores as a simulator: what a method would predict if its scores were all there is.

    L_t = L_0 − k Σ_{s≤t} w_s Σ_{i∈c_s} S_i(z) / |c_s|

With as-is scores k is what the method itself says (TracIn, Pruthi et al. 2020: w_s the learning rate, k = 1).
Calibrated, k is the one number that fits the training runs best, by least squares over all recorded losses:

    k = −Σ P (L − L_0) / Σ P²,   P the double sum above
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from simfluence.curriculum import Curriculum, count_matrix
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator

Weighing = Literal["rate", "use", "run", ""]
"""What one use of an example in a step weighs: the step's learning rate η ("rate": scores are inner products
of gradients), 1 ("use": scores are changes of the loss a step), 1/T in a run of T steps ("run": scores are
responses to the weight of an example in the mean loss); "" if the scores have no units."""


class ScoresSimulator(Simulator):
    """Additive in given scores.

    Parameters
    ----------
    scores : [train, test], or anything with such an attribute ``scores``; positive lowers the loss. None:
        all zero, which is persistence.
    calibrated : fit k on the training runs; otherwise k is ``scale``, and ``weighing`` must be known.
    weighing : see :data:`Weighing`. By default what the scores themselves say.
    scale : k as it is; by default what the scores themselves say.

    Attributes
    ----------
    scale_ : k. rates_ : float [step], the learning rates of the training runs (their mean).
    """

    name: ClassVar[str] = "scores"

    def __init__(
        self,
        scores: Any = None,
        calibrated: bool = True,
        weighing: Weighing | None = None,
        scale: float | None = None,
    ) -> None:
        if weighing is not None and weighing not in get_args(Weighing):
            raise ValueError(f"weighing must be one of {get_args(Weighing)}, got {weighing!r}")
        self.scores = scores
        self.calibrated = calibrated
        self.weighing = weighing
        self.scale = scale

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        shape = (self.n_train_, self.n_test_)
        scores = np.zeros(shape) if self.scores is None else getattr(self.scores, "scores", self.scores)
        self.scores_ = np.array(scores, np.float64)
        if self.scores_.shape != shape or not np.isfinite(self.scores_).all():
            raise ValueError(f"scores must be finite, [train, test] = {shape}, got {self.scores_.shape}")
        told = self.weighing if self.weighing is not None else getattr(self.scores, "weighing", "")
        if not told and not self.calibrated and self.scores is not None:
            raise ValueError(
                "these scores have no units, so they say nothing as they are: use calibrated=True, or say"
                " what a use weighs (weighing='rate', 'use' or 'run')"
            )
        self.weighing_ = told
        self.rates_ = _rates(train) if told == "rate" else np.ones(1)
        if self.calibrated:
            self.scale_ = self._least_squares(train)
        else:
            self.scale_ = float(self.scale if self.scale is not None else getattr(self.scores, "scale", 1.0))

    def _least_squares(self, train: RunSet) -> float:
        moved = weighed = 0.0
        for run in train:
            gained = self._gained(run.curriculum)[np.asarray(run.evaluated)]
            change = run.loss - run.loss[0]
            known = np.isfinite(change)
            moved += float((gained * np.where(known, change, 0.0)).sum())
            weighed += float((np.square(gained) * known).sum())
        return -moved / weighed if weighed > 0 else 0.0

    def _gained(self, curriculum: Curriculum) -> Array:
        """P, float [step + 1, test]."""
        steps = len(curriculum)
        weights = self.rates_[np.minimum(np.arange(steps), len(self.rates_) - 1)]
        if self.weighing_ == "run":
            weights = weights / steps
        each = (count_matrix([curriculum], batch_size=1.0) @ self.scores_) * weights[:, None]
        return np.concatenate([np.zeros((1, self.n_test_)), np.cumsum(each, axis=0)])

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        steps = max(len(curriculum) for curriculum in curricula) + 1
        losses = np.full((len(curricula), steps, self.n_test_), np.nan)
        for run, curriculum in enumerate(curricula):
            losses[run, : len(curriculum) + 1] = initial_loss[run] - self.scale_ * self._gained(curriculum)
        return losses

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments; scores are kept with the fitted values and left out here."""
        return {**super().get_params(), "scores": None, "weighing": getattr(self, "weighing_", self.weighing)}

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> Self:
        super()._restore(arrays, plain)
        self.scores = self.scores_  # so that a loaded simulator can be fitted again
        return self


def _rates(runs: RunSet) -> Array:
    """float [step]: the mean learning rate of the runs that log it. ValueError if none does."""
    rates = np.full((len(runs), max(len(run) for run in runs)), np.nan)
    for number, run in enumerate(runs):
        rates[number, : len(run)] = run.learning_rate
    known = np.isfinite(rates)
    if not known.any(0).all():
        raise ValueError(
            "scores in units of gradients need the learning rates of the runs, which do not log them:"
            " pass weighing='use', or scores in units of losses"
        )
    mean: Array = np.where(known, rates, 0.0).sum(0) / known.sum(0)
    return mean
