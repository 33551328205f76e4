"""Edits of a curriculum. They return a new one and leave the old one as it was."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from simfluence.curriculum.batches import Array, Curriculum, IntArray, as_int_vector, check_counted
from simfluence.curriculum.mixtures import Mixture, shares_of

Examples: TypeAlias = npt.ArrayLike
"""A set of training examples: row numbers, in any order."""


def remove(curriculum: Curriculum, examples: Examples, *, refill: bool = True) -> Curriculum:
    """Leave every occurrence of these examples out.

    With ``refill`` the later examples move up, so that batches stay full and the run gets shorter, as
    if the data loader had never known them; without, their batches shrink where they stood, and
    steps left with nothing vanish.

    Of shares, with ``refill`` those of the other groups grow in proportion, so that each step consumes as
    much as before; without, they stay. Steps left with nothing vanish in both.

    Raises ValueError if nothing would be left.
    """
    stays = ~np.isin(curriculum.examples, _example_set(curriculum, examples))
    return _select(curriculum, stays, refill)


def keep(curriculum: Curriculum, examples: Examples, *, refill: bool = True) -> Curriculum:
    """Leave everything but these examples out (``refill`` as in :func:`remove`)."""
    stays = np.isin(curriculum.examples, _example_set(curriculum, examples))
    return _select(curriculum, stays, refill)


def repeat(
    curriculum: Curriculum,
    examples: Examples,
    times: int,
    *,
    rng: np.random.Generator | None = None,
    adjacent: bool = False,
) -> Curriculum:
    """Let each occurrence of these examples occur ``times`` times (1: as it is).

    Every copy goes to a uniformly drawn place of the whole curriculum, as if the data set had held copies;
    ``rng`` draws the places, by default one seeded with 0. With ``adjacent`` copies follow their original at
    once instead. Batches keep their sizes, so the run gets longer; the last batch may be smaller.

    Shares of these groups are multiplied by ``times``, and those of all groups then divided by their sum, so
    that each step consumes as much as before.

    Raises ValueError unless ``times`` is a whole number, at least 1.
    """
    if isinstance(times, bool) or int(times) != times or times < 1:
        raise ValueError(
            f"times must be a whole number, at least 1, got {times}; to leave examples out use remove()"
        )
    times = int(times)
    chosen = np.isin(curriculum.examples, _example_set(curriculum, examples))
    if curriculum.amounts is not None:
        more = curriculum.amounts * np.where(chosen, times, 1)
        offsets, groups = curriculum.offsets, curriculum.n_examples
        return _rescaled(Curriculum(curriculum.examples, offsets, groups, more), curriculum.consumed)
    if adjacent:
        stream = np.repeat(curriculum.examples, np.where(chosen, times, 1))
    else:
        copies = np.repeat(curriculum.examples[chosen], times - 1)
        places = (rng or np.random.default_rng(0)).integers(0, len(curriculum.examples) + 1, size=len(copies))
        stream = np.insert(curriculum.examples, places, copies)
    return _rebatch(curriculum, stream)


def set_shares(curriculum: Curriculum, mixture: Mixture, groups: Sequence[str]) -> Curriculum:
    """Let each step consume as much as before, but of this mixture of groups, as "60% web, 40% code"
    (:mod:`simfluence.curriculum.mixtures`). "30% code, rest as before" leaves the others their proportions.

    groups : the names of the training table's rows.

    Raises ValueError for counted examples, or a mixture that cannot be read or does not sum to 1.
    """
    if curriculum.amounts is None:
        raise ValueError("set_shares needs a curriculum of shares of groups, but this one counts examples")
    units = curriculum.consumed
    before = curriculum.counts().toarray() / units[:, None]
    return Curriculum.from_shares(shares_of(mixture, groups, units, before), units)


def put_before(curriculum: Curriculum, first: Examples, second: Examples) -> Curriculum:
    """Let all occurrences of ``first`` come before all of ``second``.

    The places that both take together stay the same, the order within each stays the same, and
    nothing else moves.

    Raises ValueError if the two overlap, or for shares of groups.
    """
    check_counted([curriculum], "put_before")
    first_set, second_set = _example_set(curriculum, first), _example_set(curriculum, second)
    if (both := np.intersect1d(first_set, second_set)).size:
        raise ValueError(f"an example cannot come before itself: {both[:5].tolist()} are in both sets")
    is_first = np.isin(curriculum.examples, first_set)
    is_second = np.isin(curriculum.examples, second_set)
    stream = curriculum.examples.copy()
    stream[is_first | is_second] = np.concatenate(
        [curriculum.examples[is_first], curriculum.examples[is_second]]
    )
    return Curriculum(stream, curriculum.offsets, curriculum.n_examples)


def of_length(curriculum: Curriculum, steps: int) -> Curriculum:
    """Let training end after that many steps: earlier, or going on with the examples from the beginning.

    Raises ValueError unless ``steps`` is a whole number, at least 1, or for shares of groups.
    """
    check_counted([curriculum], "of_length")
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be a whole number, at least 1, got {steps}")
    more = int(steps) - len(curriculum)
    if more <= 0:
        offsets = curriculum.offsets[: int(steps) + 1]
        return Curriculum(curriculum.examples[: offsets[-1]], offsets, curriculum.n_examples)
    total = len(curriculum.examples) + more * int(np.median(curriculum.batch_sizes))
    return _rebatch(curriculum, np.resize(curriculum.examples, total))


def shuffle(curriculum: Curriculum, rng: np.random.Generator, *, window: int | None = None) -> Curriculum:
    """Permute the occurrences: over the whole curriculum, or within every ``window`` steps in turn.

    Raises ValueError for a window below 1, or for shares of groups.
    """
    check_counted([curriculum], "shuffle")
    if window is not None and window < 1:
        raise ValueError(f"window is a number of steps, at least 1, got {window}")
    steps = np.arange(0, len(curriculum), window or max(len(curriculum), 1))
    bounds = curriculum.offsets[np.append(steps, len(curriculum))]
    windows = [rng.permutation(curriculum.examples[a:b]) for a, b in itertools.pairwise(bounds)]
    stream = np.concatenate(windows) if windows else curriculum.examples
    return Curriculum(stream, curriculum.offsets, curriculum.n_examples)


def concatenate(*curricula: Curriculum) -> Curriculum:
    """One curriculum after the other."""
    if not curricula:
        raise ValueError("concatenate() needs at least one curriculum")
    sizes = {curriculum.n_examples for curriculum in curricula}
    if len(sizes) != 1:
        raise ValueError(f"expected curricula over one training table, got tables of sizes {sorted(sizes)}")
    examples, steps, uses = (
        np.concatenate([getattr(curriculum, name) for curriculum in curricula])
        for name in ("examples", "batch_sizes", "uses")
    )
    counted = all(curriculum.amounts is None for curriculum in curricula)
    offsets = np.concatenate([[0], np.cumsum(steps)])
    return Curriculum(examples, offsets, sizes.pop(), None if counted else uses)


def _example_set(curriculum: Curriculum, examples: Examples) -> IntArray:
    rows = np.unique(as_int_vector(np.atleast_1d(np.asarray(examples)), "examples"))
    outside = rows[(rows < 0) | (rows >= curriculum.n_examples)]
    if outside.size:
        raise ValueError(
            f"examples {outside[:5].tolist()} are outside the training table,"
            f" whose rows are 0 .. {curriculum.n_examples - 1}"
        )
    return rows


def _select(curriculum: Curriculum, stays: npt.NDArray[np.bool_], refill: bool) -> Curriculum:
    if not stays.any():
        raise ValueError("this edit would leave no example in the curriculum")
    if refill and curriculum.amounts is None:
        return _rebatch(curriculum, curriculum.examples[stays])
    amounts = None if curriculum.amounts is None else curriculum.amounts[stays]
    step = np.repeat(np.arange(len(curriculum)), curriculum.batch_sizes)[stays]
    sizes = np.bincount(step, minlength=len(curriculum))
    offsets = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
    selected = Curriculum(curriculum.examples[stays], offsets, curriculum.n_examples, amounts)
    return _rescaled(selected, curriculum.consumed[sizes > 0]) if refill else selected


def _rescaled(curriculum: Curriculum, consumed: Array) -> Curriculum:
    """The same shares of groups, of which each step consumes that much in all; consumed [step]."""
    amounts = curriculum.uses * np.repeat(consumed / curriculum.consumed, curriculum.batch_sizes)
    return Curriculum(curriculum.examples, curriculum.offsets, curriculum.n_examples, amounts)


def _rebatch(curriculum: Curriculum, stream: IntArray) -> Curriculum:
    """The stream cut at the curriculum's batch sizes, going on with its usual (median) size."""
    sizes = curriculum.batch_sizes
    usual = int(np.median(sizes))
    missing = max(0, len(stream) - int(sizes.sum()))
    ends = np.cumsum(np.concatenate([sizes, np.full(-(-missing // usual), usual)]))
    offsets = np.concatenate([[0], ends[ends < len(stream)], [len(stream)]])
    return Curriculum(stream, offsets, curriculum.n_examples)
