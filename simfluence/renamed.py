"""Options that have new names. Whoever gives an old name gets an error that says the new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

RECORDING = {"checkpoints": "keep_weights", "checkpoint_every": "resume_every"}
"""Old name → new name, for the options of a recorded run."""

PRUNING = {"checkpoints": "weights"}
"""Old name → new name, for what can be pruned."""


def check(
    given: Iterable[str], names: Mapping[str, str], error: type[TypeError | ValueError] = TypeError
) -> None:
    """Raises the error if an old name is among those given."""
    for old in given:
        if old in names:
            raise error(f"{old!r} is now named {names[old]!r}")


def refuse_old(names: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function raises TypeError if it is called with an old name as a keyword.

    names : old name → new name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check(kwargs, names)
            return function(*args, **kwargs)

        return checked

    return decorate
