"""The two trivial simulators that every other must beat."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from simfluence.curriculum import Curriculum
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator


class Persistence(Simulator):
    """Nothing is learnt: L_t = L_0."""

    name: ClassVar[str] = "persistence"

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        pass

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        steps = max(len(curriculum) for curriculum in curricula) + 1
        return np.repeat(initial_loss[:, None], steps, axis=1)


class MeanTrajectory(Simulator):
    """Every run goes like the average training run, whatever it is fed.

    L_t(z) = mean over the training runs of L_t(z); after the last recorded step, its last value.
    A simulator that does not beat this has learnt nothing about what curricula change.
    """

    name: ClassVar[str] = "mean_trajectory"

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # steps that no run was evaluated at
            self.mean_ = np.nanmean(np.where(np.isfinite(train.loss), train.loss, np.nan), axis=0)
        """float [step + 1, test]"""
        steps = np.arange(len(self.mean_))
        for losses in self.mean_.T:
            if (gaps := ~np.isfinite(losses)).any() and not gaps.all():
                losses[gaps] = np.interp(steps[gaps], steps[~gaps], losses[~gaps])

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        steps = max(len(curriculum) for curriculum in curricula) + 1
        mean = self.mean_[np.minimum(np.arange(steps), len(self.mean_) - 1)]
        return np.repeat(mean[None], len(curricula), axis=0)
