"""One recorded fine-tuning run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, IntArray
from simfluence.errors import RunDataError

FloatArray = npt.NDArray[np.floating]
Status = Literal["running", "interrupted", "failed", "complete"]

FEW_EVALUATIONS = 6
"""With fewer, SmolLM2's run was predicted worse than by no change (analysis/results/smollm2/what_ifs.md)."""


@dataclass(frozen=True, eq=False)
class Run:
    """One fine-tuning run: the batches it consumed, and the losses it was evaluated at.

    Parameters
    ----------
    id : the run's name within its set.
    curriculum : the batches consumed, T steps.
    metrics : name → float [evaluated step, test]; ``"loss"`` is always there.
    evaluated : int [evaluated step], ascending: the number of steps taken before each evaluation;
        0 is before the first step.
    learning_rate, train_loss : float [step]; NaN where it was not logged. Where parameter groups have rates
        of their own, ``learning_rate`` is that of the group with the most trained parameters.
    group_rates : float [step, group], the learning rate of every parameter group, in the order of
        ``optimizer["groups"]``; 0 where a group was not trained in that step. None: all groups have
        ``learning_rate``.
    status : "complete", or how far an incomplete run came.
    optimizer : class and settings (betas, momentum, weight decay) as used; {} if unknown. Where parameter
        groups differ, these are those of the group with the most trained parameters, and the key "groups" has
        an entry a group: "parameters" (names of the model's), "lr" (its rate as the run began) and the
        settings that differ.
    initial_weights : the fingerprint of the weights before the first step (recording/fingerprint.py); None if
        it was not recorded.
    config, environment : what the user said of the run; versions and platform.
    seed : the user's seed, if one was given.
    """

    id: str
    curriculum: Curriculum
    metrics: Mapping[str, FloatArray]
    evaluated: IntArray
    learning_rate: FloatArray
    train_loss: FloatArray
    status: Status = "complete"
    seed: int | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    group_rates: FloatArray | None = None
    initial_weights: str | None = None

    def __post_init__(self) -> None:
        steps = len(self.curriculum)
        if "loss" not in self.metrics:
            raise RunDataError(f"run {self.id!r} has no metric 'loss', only {sorted(self.metrics)}")
        for name, values in self.metrics.items():
            if values.ndim != 2 or len(values) != len(self.evaluated):
                raise RunDataError(
                    f"run {self.id!r}: metric {name!r} must be [evaluated step, test] with"
                    f" {len(self.evaluated)} rows, got shape {values.shape}"
                )
        if len(self.evaluated) == 0 or self.evaluated[0] < 0 or self.evaluated[-1] > steps:
            raise RunDataError(
                f"run {self.id!r}: evaluated steps must lie in 0 .. {steps}, got {self.evaluated}"
            )
        for name in ("learning_rate", "train_loss"):
            if getattr(self, name).shape != (steps,):
                raise RunDataError(
                    f"run {self.id!r}: {name} must be [step] = ({steps},), got {getattr(self, name).shape}"
                )
        if self.group_rates is not None and (self.group_rates.ndim != 2 or len(self.group_rates) != steps):
            raise RunDataError(
                f"run {self.id!r}: group_rates must be [step, group] with {steps} rows, got shape"
                f" {self.group_rates.shape}"
            )

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {self.status}, {len(self)} steps, {self.loss.shape[1]} test examples)"

    def __len__(self) -> int:
        """The number of steps taken."""
        return len(self.curriculum)

    @property
    def loss(self) -> FloatArray:
        """float [evaluated step, test]; loss[0] is before the first step, if that was evaluated."""
        return self.metrics["loss"]

    @property
    def initial_loss(self) -> FloatArray:
        """float [test]: the losses before the first step.

        Raises RunDataError if they were not recorded.
        """
        if self.evaluated[0] != 0:
            raise RunDataError(f"run {self.id!r} has no losses before its first step")
        return self.loss[0]

    @property
    def fingerprint(self) -> str:
        """A hash over the curriculum and the losses: runs that agree in both are the same run."""
        losses = np.ascontiguousarray(self.loss, "<f8").tobytes()
        return hashlib.sha256(self.curriculum.fingerprint.encode() + losses).hexdigest()[:32]

    @property
    def every_step(self) -> bool:
        """Whether the losses were recorded before the first step and after each."""
        return len(self.evaluated) == len(self) + 1
