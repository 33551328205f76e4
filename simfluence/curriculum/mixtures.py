"""Mixtures of groups: which share of what a run consumes each group has, over time, in words or numbers.

A mixture is one or several phases, one after the other. A phase is a span of the run and the shares of groups
in it:

    "60% web, 40% code"                                        the whole run alike
    "50%: 60% web, 40% code; 50%: 100% books"                  its first half, and its second
    "10 steps: 1/3 web, 2/3 code; rest: 20% web, rest books"   ten steps, and all that follow

    mixture  phases with ";" between
    phase    shares with "," between; before them, if there are several phases, a span and ":"
    span     an amount of what the run consumes in all, a whole number and "steps", or "rest" (the last phase)
    share    an amount and a group, or "rest" and a group, which has what the others leave of 1
    amount   "60%", "0.6" or "3/5"

"rest as before" leaves the rest to all groups that the phase does not name, in the proportions that they had
before an edit.

In Python the same mixture is a mapping, ``{"web": 0.6, "code": 0.4}``, or a list of phases ``(span,
mapping)``; a span is a float (a part of the run), an int (a number of steps) or "rest". Groups whose names
hold "," or ";" need this form.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Shares: TypeAlias = Mapping[str, float | str]
"""Group → its share, or "rest"."""
Phase: TypeAlias = tuple[float | str, Shares]
Mixture: TypeAlias = str | Shares | Sequence[Phase]

REST = "rest"
AS_BEFORE = "as before"
"""In the place of a group: all groups that are not named, in the proportions that they had."""

_TOLERANCE = 1e-6
_AMOUNT = r"-?(?:\d+\.?\d*|\.\d+)(?:\s*%|\s*/\s*\d+)?"
_SHARE = re.compile(rf"({_AMOUNT}|{REST})(?:(?<=%)|\s)\s*(\S.*)")
_SPAN = re.compile(rf"({_AMOUNT}|{REST})|(-?\d+)\s+steps?")


def shares_of(
    mixture: Mixture, groups: Sequence[str], units: npt.ArrayLike, before: npt.ArrayLike | None = None
) -> Array:
    """The shares of every step, float [step, group].

    Where a phase ends within a step, the step has of both phases.

    Parameters
    ----------
    groups : the names of the groups. units : float [step], how much each step consumes.
    before : float [step, group], the shares that "rest as before" means; None where there are none.

    Raises ValueError for text that cannot be read, an unknown group, a share below 0, shares of a phase that
    do not sum to 1, or phases that do not cover the run.
    """
    phases = parse(mixture) if isinstance(mixture, str) else mixture
    phases = [(REST, phases)] if isinstance(phases, Mapping) else list(phases)
    if not phases:
        raise ValueError("a mixture needs at least one phase, got none")
    parts = _parts([span for span, _ in phases], np.asarray(units, np.float64))
    former = None if before is None else np.asarray(before, np.float64)
    of_phases = [_shares_of_phase(shares, list(groups), former) for _, shares in phases]
    return np.asarray(sum(parts[:, [number]] * shares for number, shares in enumerate(of_phases)))


def parse(text: str) -> list[Phase]:
    """The phases that a text names. Raises ValueError for one that cannot be read."""
    phases: list[Phase] = []
    written = text.split(";")
    for phase in written:
        span, colon, shares = phase.rpartition(":")
        if not colon and len(written) > 1:
            raise ValueError(
                f"{phase.strip()!r} is one of {len(written)} phases and needs a span before it, as"
                f" '50%: {phase.strip()}'"
            )
        phases.append((_span(span.strip()) if colon else REST, _shares(shares)))
    return phases


def check_shares(shares: npt.ArrayLike, row: str, *, normalize: bool = False) -> Array:
    """Shares as float [row, group]; with ``normalize`` each row divided by its sum.

    row : what the rows are, for the message.

    Raises ValueError unless they are finite, at least 0, and (without ``normalize``) sum to 1 to 1e-6.
    """
    values = np.array(shares, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"shares must be [{row}, group], got shape {values.shape}")
    if (wrong := np.argwhere(~np.isfinite(values) | (values < 0))).size:
        at, group = wrong[0]
        raise ValueError(
            f"shares must be at least 0, but that of group {group} in {row} {at} is {values[at, group]}"
        )
    sums = values.sum(1)
    if normalize and (sums > 0).all():
        return values / sums[:, None]
    off = np.abs(sums - 1)
    if off.max() > _TOLERANCE:
        worst = off.argmax()
        raise ValueError(
            f"the shares of a {row} must sum to 1, but those of {row} {worst} sum to {sums[worst]:.6g},"
            f" which is {sums[worst] - 1:+.3g} off ({(off > _TOLERANCE).sum()} such {row}s); divide them by"
            " their sums"
        )
    return values


def check_units(units: npt.ArrayLike, steps: int) -> Array:
    """How much each step consumes, float [step], from one number or one a step; ValueError unless above 0."""
    each = np.asarray(units, np.float64)
    if each.shape not in ((), (steps,)):
        raise ValueError(
            f"units must be one number, or [step] = ({steps},) as the shares, got shape {each.shape}"
        )
    if not (fine := np.isfinite(each) & (each > 0)).all():
        raise ValueError(f"units must be above 0 and finite, got {each[~fine].flat[0]}")
    return np.broadcast_to(each, steps)


# ------------------------------------------------------------------------------------ words to numbers


def _shares(text: str) -> Shares:
    """ "60% web, rest books" as a mapping."""
    found: dict[str, float | str] = {}
    for share in text.split(","):
        if not (match := _SHARE.fullmatch(share.strip())):
            raise ValueError(
                f"{share.strip()!r} is no share of a group: write an amount and then the group, as '60% web',"
                " '0.6 web', '3/5 web' or 'rest web'"
            )
        amount, group = match.groups()
        if group in found:
            raise ValueError(f"the group {group!r} stands twice in {text.strip()!r}")
        found[group] = _amount(amount)
    return found


def _span(text: str) -> float | str:
    if not (match := _SPAN.fullmatch(text)):
        raise ValueError(
            f"{text!r} is no span of a run: write '50%', '0.5', '1/2', '10 steps', or 'rest' for the last"
        )
    return int(match[2]) if match[2] else _amount(match[1])


def _amount(text: str) -> float | str:
    if text == REST:
        return REST
    number, _, below = text.rstrip("% ").partition("/")
    if below and int(below) == 0:
        raise ValueError(f"{text!r} divides by 0")
    return float(number) / (100 if text.endswith("%") else int(below or 1))


# ----------------------------------------------------------------------------------- numbers to arrays


def _shares_of_phase(shares: Shares, groups: list[str], before: Array | None) -> Array:
    """The shares of one phase, float [group]; [step, group] where they are as before."""
    named = {group: amount for group, amount in shares.items() if amount != REST}
    for group in shares:
        if group not in groups and not (group == AS_BEFORE and shares[group] == REST):
            close = difflib.get_close_matches(str(group), groups, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"there is no group {group!r}{hint}; the groups are {', '.join(groups)}")
    for group, amount in named.items():
        if isinstance(amount, str) or not 0 <= amount < np.inf:
            raise ValueError(f"shares must be numbers of at least 0, but that of {group!r} is {amount!r}")
    total, rest = sum(map(float, named.values())), [group for group in shares if shares[group] == REST]
    if len(rest) > 1:
        raise ValueError(f"one group may have the rest, but {' and '.join(map(repr, rest))} have it")
    if total > 1 + _TOLERANCE or (not rest and total < 1 - _TOLERANCE):
        hint = "" if total > 1 else "; 'rest' and a group's name gives it what is left"
        raise ValueError(
            f"the shares of {', '.join(map(repr, named))} must sum to 1, but sum to {total:.6g},"
            f" which is {total - 1:+.3g} off{hint}"
        )
    values = np.zeros(len(groups))
    values[[groups.index(group) for group in named]] = list(map(float, named.values()))
    if not rest:
        return values / total
    if rest == [AS_BEFORE]:
        return values + max(1 - total, 0.0) * _others(named, groups, before)
    values[groups.index(rest[0])] = max(1 - total, 0.0)
    return values


def _others(named: Mapping[str, object], groups: list[str], before: Array | None) -> Array:
    """The former shares of all groups that are not named, divided by their sum, float [step, group]."""
    if before is None:
        raise ValueError("'rest as before' goes with an edit of a run; name the group that has the rest")
    others = before * [group not in named for group in groups]
    sums = others.sum(1, keepdims=True)
    if not (sums > 0).all():
        raise ValueError(
            f"step {int(np.argmin(sums > 0))} consumed nothing but {', '.join(map(repr, named))}: there is no"
            " rest as before; name the group that has the rest"
        )
    return np.asarray(others / sums)


def _parts(spans: Sequence[float | str], units: Array) -> Array:
    """Which part of each step lies in each phase, float [step, phase]."""
    steps = np.arange(len(units) + 1)
    at = np.concatenate([[0.0], np.cumsum(units)]) / units.sum()  # where steps begin and end in the run
    edges = [0.0]
    for number, span in enumerate(spans):
        if span == REST and number == len(spans) - 1:
            edges.append(max(edges[-1], 1.0))
        elif isinstance(span, str):
            raise ValueError(
                f"a span is a number, or {REST!r} for the last phase, got {span!r} for number {number}"
            )
        elif isinstance(span, bool) or not 0 < span < np.inf:
            raise ValueError(f"the span of a phase must be above 0, got {span!r} for number {number}")
        elif isinstance(span, int | np.integer):
            end = np.interp(edges[-1], at, steps) + span
            edges.append(float(np.interp(end, steps, at)) if end <= steps[-1] else end / steps[-1])
        else:
            edges.append(edges[-1] + float(span))
    if abs(edges[-1] - 1) > _TOLERANCE or edges[-1] - edges[-2] <= _TOLERANCE:
        raise ValueError(
            f"the phases must cover the whole run of {len(units)} steps, each a part of it, but end after"
            f" {', '.join(f'{edge:.4g}' for edge in edges[1:])} of it; the last may have the span {REST!r}"
        )
    inside = np.minimum(at[1:, None], edges[1:]) - np.maximum(at[:-1, None], edges[:-1])
    parts = inside / np.diff(at)[:, None]
    parts[parts < 1e-9] = 0.0  # of rounding
    return np.asarray(parts / parts.sum(1, keepdims=True))
