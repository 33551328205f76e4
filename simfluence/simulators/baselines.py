"""The two trivial simulators that every other must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.curriculum import Curriculum
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator, register
from simfluence.simulators.effects.grid import mean_over_runs


@register
class Persistence(Simulator):
    """Nothing is learnt: L_t = L_0."""

    name: ClassVar[str] = "persistence"
    takes_shares: ClassVar[bool] = True

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        pass

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        steps = max(len(curriculum) for curriculum in curricula) + 1
        return np.repeat(initial_loss[:, None], steps, axis=1)


@register
class MeanTrajectory(Simulator):
    """Every run goes like the average training run, whatever it is fed.

    L_t(z) is the mean over the training runs that got so far; steps at which no run was evaluated are
    interpolated, and after the last recorded step its value stays. A simulator that does not beat this one
    has learnt nothing about what curricula change.

    Attributes
    ----------
    mean_ : float [step + 1, test].
    """

    name: ClassVar[str] = "mean_trajectory"
    takes_shares: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = ("mean_",)

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        mean = pd.DataFrame(mean_over_runs(list(train.loss)))
        self.mean_ = mean.interpolate(limit_direction="both").to_numpy()

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        steps = max(len(curriculum) for curriculum in curricula) + 1
        mean = self.mean_[np.minimum(np.arange(steps), len(self.mean_) - 1)]
        return np.repeat(mean[None], len(curricula), axis=0)
