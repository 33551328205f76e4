"""A curriculum: the batches of a run, or the shares of groups that its steps consume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.curriculum.mixtures import Mixture, check_shares, check_units, shares_of

IntArray: TypeAlias = npt.NDArray[np.int64]
Array: TypeAlias = npt.NDArray[np.float64]


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
        examples = as_int_vector(self.examples, "examples")
        offsets = as_int_vector(self.offsets, "offsets")
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
        rows = [as_int_vector(batch, "a batch") for batch in batches]
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
        amounts = of_step * check_units(units, len(of_step))[:, None]
        step, group = np.nonzero(amounts)
        offsets = np.searchsorted(step, np.arange(len(of_step) + 1))
        return cls(group, offsets, amounts.shape[1], amounts[step, group])

    @classmethod
    def from_mixture(
        cls, mixture: Mixture, groups: Sequence[str], steps: int, units: npt.ArrayLike = 1.0
    ) -> Curriculum:
        """A curriculum that consumes a mixture in words, as "60% web, 40% code", or as a mapping or phases
        (:mod:`simfluence.curriculum.mixtures` says what may be written).

        groups : the names of the training table's rows, ``runs.train.ids``.
        units : as in :meth:`from_shares`.

        Raises ValueError for a mixture that cannot be read or does not sum to 1, and an unknown group.
        """
        if isinstance(steps, bool) or steps != int(steps) or steps < 1:
            raise ValueError(f"steps must be a whole number, at least 1, got {steps}")
        each = check_units(units, int(steps))
        return cls.from_shares(shares_of(mixture, groups, each), each)

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


def of_shares(curricula: Iterable[Curriculum]) -> bool:
    """Whether these consume shares of groups; ValueError if some do and others count examples."""
    kinds = [curriculum.amounts is not None for curriculum in curricula]
    if any(kinds) and not all(kinds):
        raise ValueError(
            f"{sum(kinds)} of {len(kinds)} curricula consume shares of groups, the others counted examples,"
            " and the two cannot be compared; take runs of one kind"
        )
    return any(kinds)


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


def as_int_vector(values: npt.ArrayLike, what: str) -> IntArray:
    """Row numbers as int64 [n]; ``what`` begins the message of the ValueError for anything else."""
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
