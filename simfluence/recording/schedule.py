"""At which steps something is due. Step t is after t optimizer steps; 0 is before the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

Schedule: TypeAlias = Callable[[int], bool]
KeepWeights: TypeAlias = Literal["every"] | int | Iterable[int] | None
"""When weights are kept: never, after every step, at a number of evenly spaced steps, or at given steps."""


def never(step: int) -> bool:
    return False


def evaluations(every: int, at: Iterable[int] | None, total_steps: int | None) -> Schedule:
    """Every so many steps, and the last one if the total is known; or 0 and the given steps."""
    if every < 1:
        raise ValueError(f"evaluate_every is a number of steps, at least 1, got {every}")
    if at is None:
        return lambda step: step % every == 0 or step == total_steps
    if every != 1:
        raise ValueError("give either evaluate_every or evaluate_at, not both")
    return _given(at, "evaluate_at", also=(0,))


def weights(which: KeepWeights, total_steps: int | None) -> Schedule:
    """When weights are kept. A number k means the steps T/k, 2T/k, …, T: the last is the end of training."""
    if which is None:
        return never
    if which == "every":
        return lambda step: True
    if isinstance(which, str | float):
        raise ValueError(f"keep_weights is None, 'every', a number of steps, or the steps; got {which!r}")
    if not isinstance(which, int):
        return _given(which, "keep_weights")
    if total_steps is None:
        raise ValueError(
            f"keep_weights={which} needs total_steps=, the run's number of steps, to space them evenly"
        )
    if not 1 <= which <= total_steps:
        raise ValueError(f"in a run of {total_steps} steps keep_weights is 1 to {total_steps}, not {which}")
    return _given([round(total_steps * i / which) for i in range(1, which + 1)], "keep_weights")


def _given(steps: Iterable[int], what: str, also: tuple[int, ...] = ()) -> Schedule:
    steps = list(steps)
    if broken := [step for step in steps if step != int(step)]:
        raise ValueError(f"{what}: steps are whole numbers, got {broken[0]}")
    given = frozenset(int(step) for step in steps)
    if bad := [step for step in given if step < 0]:
        raise ValueError(f"{what}: steps are 0 or more, got {min(bad)}")
    return (given | frozenset(also)).__contains__
