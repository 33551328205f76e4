"""Evaluations that take at most a share of the time of training.

How long steps and evaluations take is measured as training goes. Of the r evaluations that the budget still
allows, the last is after the last step T. The others are spaced geometrically from the one after step t, the
next of them after step t′:

    t′ + 1 = (t + 1) ((T + 1)/(t + 1))^(1/r),   r = (share × time of all T steps − time spent) / time of one

so that there are more at the beginning, where losses change most. Where t′ < t + 1, every step is
evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from simfluence.recording.evaluator import Evaluate, Metrics
from simfluence.recording.processes import Processes


class Budget:
    """A schedule of evaluations (see :mod:`.schedule`) that keeps within a share of the time of training.

    The evaluations before the first step and after the last are made whatever they cost.

    Parameters
    ----------
    share : of the time of all steps that evaluations may take: 0.1 is at most 10 % more time.
    total_steps : how many steps the run will have.
    whole : how many of the other evaluations take as long as those before the first step and after the last:
        more than 1, where the others are of a part of the test examples only.
    clock : gives the time in seconds; by default the computer's.

    Raises ValueError for a share that is not above 0, or without a number of steps.
    """

    def __init__(
        self,
        share: float,
        total_steps: int | None,
        clock: Callable[[], float] | None = None,
        *,
        whole: float = 1.0,
    ) -> None:
        if not share > 0:
            raise ValueError(f"evaluate_within is a share of the time of training above 0, got {share}")
        if total_steps is None:
            raise ValueError("evaluate_within needs total_steps=, the run's number of steps, to plan with")
        self.share, self._total, self._clock = share, total_steps, clock or time.monotonic
        self._whole = whole
        self._evaluations: list[float] = []  # seconds of each
        self._evaluated = 0  # the step after which the last one was
        self._trained = self._of_first_step = 0.0  # seconds
        self._timed_steps = 0
        self._since: float | None = None  # when training went on

    def measuring(self, evaluator: Evaluate) -> Evaluate:
        """The evaluator, its time measured."""

        def measured(*arguments: Any) -> Metrics:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # steps that are still under way are no part of it
            began = self._clock()
            if self._since is not None:
                self._trained += began - self._since
            try:
                return evaluator(*arguments)
            finally:
                self._since = self._clock()
                self._evaluations.append(self._since - began)

        return measured

    def __call__(self, step: int) -> bool:
        """Whether to evaluate after a step, asked once after every step. All processes get the answer of the
        one that writes."""
        self._note_step()
        due = Processes.current().from_writer(lambda: self._is_due(step))
        if due:
            self._evaluated = step
        return due

    def _note_step(self) -> None:
        now = self._clock()
        if self._since is None:  # a resumed run, whose first step here was not measured
            self._since = now
            return
        self._trained += now - self._since
        self._since = now
        self._timed_steps += 1
        if self._timed_steps == 1:
            self._of_first_step = self._trained

    def _is_due(self, step: int) -> bool:
        if step >= self._total or not self._evaluations:
            return step <= self._total
        left = self._left(step)
        if left < 2:  # the last is for the end
            return False
        last = self._evaluated
        ratio = ((self._total + 1) / (last + 1)) ** (1 / left)
        return step + 1 >= max(last + 2, (last + 1) * ratio)

    def _left(self, step: int) -> float:
        """How many more evaluations the budget allows. The first step and the first evaluation, which are
        often slow, are not taken for typical."""
        a_step = self._trained
        if self._timed_steps > 1:
            a_step = (self._trained - self._of_first_step) / (self._timed_steps - 1)
        typical = self._evaluations[1:] or [self._evaluations[0] / self._whole]
        an_evaluation = max(sum(typical) / len(typical), 1e-9)
        budget = self.share * (self._trained + a_step * (self._total - step))
        return (budget - sum(self._evaluations)) / an_evaluation - (self._whole - 1)
