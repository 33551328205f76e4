"""At which steps something is due. Step t is after t optimizer steps; 0 is before the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

Schedule: TypeAlias = Callable[[int], bool]
Checkpoints: TypeAlias = Literal["every"] | int | Iterable[int] | None
"""Weights to keep: none, after every step, a number of them evenly spaced, or after given steps."""


def evaluations(every: int, at: Iterable[int] | None, total_steps: int | None) -> Schedule:
    """Every so many steps, and the last one if the total is known; or 0 and the given steps."""
    if every < 1:
        raise ValueError(f"evaluate_every is a number of steps, at least 1, got {every}")
    if at is None:
        return lambda step: step % every == 0 or step == total_steps
    if every != 1:
        raise ValueError("give either evaluate_every or evaluate_at, not both")
    return _given(at, "evaluate_at", also=(0,))


def checkpoints(which: Checkpoints, total_steps: int | None) -> Schedule:
    """Of k evenly spaced ones the last is the end of training: steps T/k, 2T/k, …, T."""
    if which is None:
        return lambda step: False
    if which == "every":
        return lambda step: True
    if isinstance(which, str):
        raise ValueError(f"checkpoints is None, 'every', a number of them, or their steps; got {which!r}")
    if not isinstance(which, int):
        return _given(which, "checkpoints")
    if total_steps is None:
        raise ValueError(f"to space {which} checkpoints evenly, pass total_steps=, the run's number of steps")
    if not 1 <= which <= total_steps:
        raise ValueError(f"a run of {total_steps} steps has 1 to {total_steps} checkpoints, not {which}")
    return _given([round(total_steps * i / which) for i in range(1, which + 1)], "checkpoints")


def _given(steps: Iterable[int], what: str, also: tuple[int, ...] = ()) -> Schedule:
    given = frozenset(int(step) for step in steps)
    if bad := [step for step in given if step < 0]:
        raise ValueError(f"{what}: steps are 0 or more, got {min(bad)}")
    return (given | frozenset(also)).__contains__
