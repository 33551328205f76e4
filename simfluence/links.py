"""Links: the scales on which simulators of training are linear (analysis/METHODS.md, "Links").

    identity    g(L) = L
    log_odds    g(L) = log(eᴸ − 1)

For a loss L = −log p the second is the log-odds of the model being wrong, log((1 − p)/p). Both rise with the
loss, so that an effect below zero lowers the loss on either scale.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Link: TypeAlias = Literal["identity", "log_odds"]
LINKS: tuple[Link, ...] = get_args(Link)

LOSS_FLOOR = 1e-2
"""Smaller losses count as this one: their log-odds are mostly noise."""

FEW_ZEROS = 0.05
"""A larger share of losses that are exactly zero is not that of cross-entropies which are nearly so."""


def has_log_odds(losses: npt.ArrayLike) -> bool:
    """Whether these losses, of any shape, are like −log p: none below zero, and few exactly zero."""
    values = np.asarray(losses)
    return not (values < 0).any() and float((values == 0).mean()) <= FEW_ZEROS


def link(losses: npt.ArrayLike, name: Link) -> Array:
    """g(L), of any shape."""
    values = np.asarray(losses, np.float64)
    return values if name == "identity" else log_odds(values)


def unlink(values: Array, name: Link) -> Array:
    """g⁻¹: losses, of any shape. The inverse of the log-odds is log(1 + eᵍ)."""
    return values if name == "identity" else np.logaddexp(0.0, values)


def slope(losses: Array, name: Link) -> Array:
    """dL/dg at losses, of any shape: 1, or 1 − e⁻ᴸ of the log-odds."""
    return np.ones_like(losses) if name == "identity" else -np.expm1(-losses)


def log_odds(losses: npt.ArrayLike, floor: float = LOSS_FLOOR) -> Array:
    """log(eᴸ − 1), computed as L + log(1 − e⁻ᴸ) so that large losses do not overflow."""
    floored = np.maximum(np.asarray(losses, np.float64), floor)
    return np.asarray(floored + np.log(-np.expm1(-floored)), np.float64)


def check_link(name: str) -> None:
    """ValueError for the name of no link."""
    if name not in LINKS:
        raise ValueError(f"link must be one of {LINKS}, got {name!r}")
