"""What a training run consumes: batches of training examples, step by step, and edits of them.

Examples are row numbers 0 .. n_examples - 1 of a fixed table of training examples (the names users
give their examples live in that table). Steps are counted from 0 here: ``curriculum[t]`` is the batch
consumed between the losses L_t and L_{t+1}.

Where a run consumes shares of groups ("60 % web, 40 % code") rather than single examples, the groups are the
rows of the table of training examples, and a curriculum says how much of each a step consumes
(:meth:`Curriculum.from_shares`).

Edits are pure functions: they return a new curriculum and leave the old one as it was.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

IntArray: TypeAlias = npt.NDArray[np.int64]
Array: TypeAlias = npt.NDArray[np.float64]
Examples: TypeAlias = npt.ArrayLike
"""A set of training examples: row numbers, in any order."""


@dataclass(frozen=True, eq=False)
class Curriculum:
    """The batches of one run; batch t is ``examples[offsets[t]:offsets[t + 1]]``.

    Build one with :meth:`from_batches` or :meth:`from_shares`. An example may occur several times, in a batch
    too; a batch may not be empty (a step without examples is no training step).

    Parameters
    ----------
    examples : int [occurrence], row numbers in the training table.
    offsets : int [step + 1], starts at 0, strictly increasing, ends at ``len(examples)``.
    n_examples : size of the training table.
    amounts : float [occurrence], above 0: how much of each is consumed, where the table's rows are groups.
        None: counted examples, one each.

    Raises
    ------
    ValueError : a number outside the table, an empty batch, or offsets or amounts that do not fit.
    """

    examples: IntArray
    offsets: IntArray
    n_examples: int
    amounts: Array | None = None

    def __post_init__(self) -> None:
        examples = _as_int_vector(self.examples, "examples")
        offsets = _as_int_vector(self.offsets, "offsets")
        object.__setattr__(self, "examples", examples)
        object.__setattr__(self, "offsets", offsets)
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(examples):
            raise ValueError(
                f"offsets must start at 0 and end at the number of occurrences ({len(examples)}),"
                f" got {offsets}"
            )
        if (empty := np.flatnonzero(np.diff(offsets) <= 0)).size:
            raise ValueError(
                f"every step needs at least one example, but step {empty[0]} has none"
                f" ({empty.size} such steps); leave the step out instead"
            )
        outside = np.flatnonzero((examples < 0) | (examples >= self.n_examples))
        if outside.size:
            step = int(np.searchsorted(offsets, outside[0], side="right")) - 1
            raise ValueError(
                f"example {examples[outside[0]]} in step {step} is outside the training table,"
                f" whose rows are 0 .. {self.n_examples - 1}"
            )
        examples.flags.writeable = False
        offsets.flags.writeable = False
        if self.amounts is not None:
            object.__setattr__(self, "amounts", _as_amounts(self.amounts, len(examples)))

    @classmethod
    def from_batches(cls, batches: Iterable[npt.ArrayLike], n_examples: int) -> Curriculum:
        """A curriculum from one sequence of row numbers per step."""
        rows = [_as_int_vector(batch, "a batch") for batch in batches]
        offsets = np.cumsum([0, *(len(row) for row in rows)])
        return cls(np.concatenate(rows) if rows else np.empty(0, np.int64), offsets, n_examples)

    @classmethod
    def from_shares(cls, shares: npt.ArrayLike, units: npt.ArrayLike = 1.0) -> Curriculum:
        """A curriculum that consumes shares of groups, which are the rows of the training table.

        Parameters
        ----------
        shares : float [step, group], at least 0; those of a step sum to 1.
        units : how much a step consumes, as tokens or examples: one number, or float [step].

        Raises
        ------
        ValueError : a share or a unit is negative or not finite, the shares of a step do not sum to 1 (to
            1e-6; the message says by how much), or units are of another number of steps.
        """
        of_step = check_shares(shares, "step")
        each = np.asarray(units, np.float64)
        if each.shape not in ((), (len(of_step),)):
            raise ValueError(
                f"units must be one number, or [step] = ({len(of_step)},) as the shares, got shape"
                f" {each.shape}"
            )
        if not (np.isfinite(each) & (each > 0)).all():
            wrong = each[~(np.isfinite(each) & (each > 0))]
            raise ValueError(f"units must be above 0 and finite, got {wrong.flat[0]}")
        amounts = of_step * np.broadcast_to(each, len(of_step))[:, None]
        step, group = np.nonzero(amounts)
        offsets = np.searchsorted(step, np.arange(len(of_step) + 1))
        return cls(group, offsets, amounts.shape[1], amounts[step, group])

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.offsets) - 1

    def __getitem__(self, step: int) -> IntArray:
        if not -len(self) <= step < len(self):
            raise IndexError(f"step {step} of a curriculum of {len(self)} steps")
        step %= len(self)
        return self.examples[self.offsets[step] : self.offsets[step + 1]]

    def __iter__(self) -> Iterator[IntArray]:
        return (self[step] for step in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Curriculum)
            and self.n_examples == other.n_examples
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.examples, other.examples)
            and (self.amounts is None) == (other.amounts is None)
            and np.array_equal(self.uses, other.uses)
        )

    def __repr__(self) -> str:
        if self.amounts is not None:
            return (
                f"Curriculum({len(self)} steps, shares of {len(self.used)} of {self.n_examples} groups,"
                f" {self.amounts.sum():.4g} units)"
            )
        return (
            f"Curriculum({len(self)} steps, {len(self.examples)} occurrences of {len(self.used)}"
            f" of {self.n_examples} examples)"
        )

    @property
    def batch_sizes(self) -> IntArray:
        """int [step]: how many examples (or groups) each step consumes."""
        return np.diff(self.offsets)

    @property
    def uses(self) -> Array:
        """float [occurrence]: the amounts, 1 each for counted examples."""
        return np.ones(len(self.examples)) if self.amounts is None else self.amounts

    @property
    def consumed(self) -> Array:
        """float [step]: how much each step consumes in all, the number of its examples or its units."""
        if self.amounts is None:
            return self.batch_sizes.astype(np.float64)
        return np.add.reduceat(self.amounts, self.offsets[:-1]) if len(self) else np.empty(0)

    @property
    def used(self) -> IntArray:
        """The examples that occur at all, ascending."""
        return np.unique(self.examples)

    @property
    def fingerprint(self) -> str:
        """A hash over the batches, and the amounts if there are any."""
        sizes = np.array([self.n_examples, len(self)])
        parts = [part.astype("<i8").tobytes() for part in (sizes, self.offsets, self.examples)]
        if self.amounts is not None:
            parts.append(self.amounts.astype("<f8").tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()[:32]

    def counts(self) -> sparse.csr_array:
        """u, sparse float64 [step, train]: how often (or how much) each example occurs in each step."""
        return count_matrix([self])


def usual_batch_size(curricula: Sequence[Curriculum]) -> float:
    """The median number of examples (or units) in a step."""
    return float(np.median(np.concatenate([curriculum.consumed for curriculum in curricula])))


def check_counted(curricula: Iterable[Curriculum], what: str) -> None:
    """Raises ValueError if a curriculum consumes shares of groups; ``what`` begins the message."""
    if any(curriculum.amounts is not None for curriculum in curricula):
        raise ValueError(
            f"{what} needs counted examples, but a curriculum consumes shares of groups"
            " (Curriculum.from_shares)"
        )


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
    if off.max() > 1e-6:
        worst = off.argmax()
        raise ValueError(
            f"the shares of a {row} must sum to 1, but those of {row} {worst} sum to {sums[worst]:.6g},"
            f" which is {sums[worst] - 1:+.3g} off ({(off > 1e-6).sum()} such {row}s); divide them by their"
            " sums"
        )
    return values


def count_matrix(
    curricula: Sequence[Curriculum],
    batch_size: float | None = None,
    uses: npt.NDArray[np.float64] | None = None,
) -> sparse.csr_array:
    """The counts of several curricula over one training table, one below the other.

    With ``batch_size`` every row is scaled to sum to it: a larger or smaller batch then weighs like
    one of that size and the same composition, since training averages over its batch. ``uses``
    [occurrence], in the order of ``examples``, multiply what each counts.

    Returns u, sparse float64 [step of all curricula in turn, train].
    """
    sizes = {curriculum.n_examples for curriculum in curricula}
    if len(sizes) != 1:
        raise ValueError(f"expected curricula over one training table, got tables of sizes {sorted(sizes)}")
    examples = np.concatenate([curriculum.examples for curriculum in curricula])
    batch_sizes = np.concatenate([curriculum.batch_sizes for curriculum in curricula])
    consumed = np.concatenate([curriculum.consumed for curriculum in curricula])
    weights = np.ones(len(batch_sizes)) if batch_size is None else batch_size / consumed
    amounts = np.concatenate([curriculum.uses for curriculum in curricula])
    counts = sparse.csr_array(
        (
            np.repeat(weights, batch_sizes) * amounts * (1.0 if uses is None else uses),
            examples,
            np.concatenate([[0], np.cumsum(batch_sizes)]),
        ),
        shape=(len(batch_sizes), sizes.pop()),
    )
    counts.sum_duplicates()
    return counts


# ---------------------------------------------------------------------------------------- edits


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

    Raises ValueError unless ``times`` is a whole number, at least 1, and examples are counted.
    """
    check_counted([curriculum], "repeat")
    if isinstance(times, bool) or int(times) != times or times < 1:
        raise ValueError(
            f"times must be a whole number, at least 1, got {times}; to leave examples out use remove()"
        )
    times = int(times)
    chosen = np.isin(curriculum.examples, _example_set(curriculum, examples))
    if adjacent:
        stream = np.repeat(curriculum.examples, np.where(chosen, times, 1))
    else:
        copies = np.repeat(curriculum.examples[chosen], times - 1)
        places = (rng or np.random.default_rng(0)).integers(0, len(curriculum.examples) + 1, size=len(copies))
        stream = np.insert(curriculum.examples, places, copies)
    return _rebatch(curriculum, stream)


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


# -------------------------------------------------------------------------------------- helpers


def _as_int_vector(values: npt.ArrayLike, what: str) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1 or not (array.size == 0 or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"{what} must be a vector of integer row numbers, got shape {array.shape}, {array.dtype}"
        )
    return array.astype(np.int64)  # a copy: nobody else can change ours


def _as_amounts(values: npt.ArrayLike, occurrences: int) -> Array:
    amounts = np.array(values, np.float64)
    if amounts.shape != (occurrences,):
        raise ValueError(f"amounts must be [occurrence] = ({occurrences},), got shape {amounts.shape}")
    if not (np.isfinite(amounts) & (amounts > 0)).all():
        raise ValueError("amounts must be above 0 and finite; leave out what is not consumed")
    amounts.flags.writeable = False
    return amounts


def _example_set(curriculum: Curriculum, examples: Examples) -> IntArray:
    rows = np.unique(_as_int_vector(np.atleast_1d(np.asarray(examples)), "examples"))
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
    step = np.repeat(np.arange(len(curriculum)), curriculum.batch_sizes)[stays]
    sizes = np.bincount(step, minlength=len(curriculum))
    offsets = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
    amounts = None if curriculum.amounts is None else curriculum.amounts[stays]
    if refill and amounts is not None:
        left = np.bincount(step, amounts, minlength=len(curriculum))
        amounts = amounts * curriculum.consumed[step] / left[step]
    return Curriculum(curriculum.examples[stays], offsets, curriculum.n_examples, amounts)


def _rebatch(curriculum: Curriculum, stream: IntArray) -> Curriculum:
    """The stream cut at the curriculum's batch sizes, going on with its usual (median) size."""
    sizes = curriculum.batch_sizes
    usual = int(np.median(sizes))
    missing = max(0, len(stream) - int(sizes.sum()))
    ends = np.cumsum(np.concatenate([sizes, np.full(-(-missing // usual), usual)]))
    offsets = np.concatenate([[0], ends[ends < len(stream)], [len(stream)]])
    return Curriculum(stream, offsets, curriculum.n_examples)
