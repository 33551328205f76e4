"""Compiling the loops that numpy and torch have no fast word for.

Files of kernels import this one, and are themselves imported where they are first used: numba takes
half a second to load, and a kernel a second or two to compile, once a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code: without the interpreter's lock, a·b + c in one instruction, kept on disk.

    Where there is no folder to keep it in, every process compiles for itself. What is kept is made anew when
    the function's own file changes, not when one that it takes from does: then delete the ``__pycache__``.
    """
    return _compiled(function, {"contract"})


def compiled_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same where sums may be taken in any order, so that they become vector instructions."""
    return _compiled(function, {"contract", "reassoc", "nsz"})


def _compiled(function: Callable[..., Any], fastmath: set[str]) -> Callable[..., Any]:
    options = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # "no locator available": neither __pycache__ nor the user's cache can be written
        return numba.njit(**options)(function)
