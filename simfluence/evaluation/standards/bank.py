"""A bank of retrained subsets: the truth that attribution's standards are measured by.

Each subset of the training examples was trained on with several seeds; kept is the final loss of every test
example, and whether its answer was right. Any attribution method can be measured on a bank without training.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from simfluence.errors import RunDataError
from simfluence.runs.storage import write_atomically
from simfluence.runs.tables import TableFingerprints

Array = npt.NDArray[np.float64]

_FORMAT = "simfluence subset bank 1"


@dataclass(eq=False)
class SubsetBank:
    """Retrained subsets. Subsets that are not trained yet have NaN as losses.

    kept : bool [subset, train], the examples that each subset keeps.
    seeds : int [seed], each the seed of an order of the examples.
    losses : float [subset, seed, test], after training. right : bool [subset, seed, test], whether the answer
        was right; False where the loss is NaN.
    fraction : the share of the examples that a subset keeps.
    optimizer, model, task : what was trained, in words.
    tables : the fingerprints of the training and the test table.

    Raises ValueError for arrays whose shapes do not agree, or seeds that repeat.
    """

    kept: npt.NDArray[np.bool_]
    seeds: tuple[int, ...]
    losses: Array
    right: npt.NDArray[np.bool_]
    optimizer: str = ""
    model: str = ""
    task: str = ""
    tables: TableFingerprints = field(default_factory=TableFingerprints)

    def __post_init__(self) -> None:
        self.kept = np.asarray(self.kept)
        self.losses = np.asarray(self.losses, np.float64)
        self.right = np.asarray(self.right, bool)
        if self.kept.dtype != bool or self.kept.ndim != 2 or not self.kept.size:
            raise ValueError(f"kept must be bool [subset, train], got {self.kept.dtype} {self.kept.shape}")
        if not self.kept.any(1).all():
            raise ValueError(f"subset {int(np.argmin(self.kept.any(1)))} keeps no example")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"every seed counts once, got {list(self.seeds)}")
        expected = (len(self.kept), len(self.seeds))
        for name, values in (("losses", self.losses), ("right", self.right)):
            if values.ndim != 3 or values.shape[:2] != expected:
                raise ValueError(f"{name} must be [{expected[0]}, {expected[1]}, test], got {values.shape}")
        if self.losses.shape != self.right.shape:
            raise ValueError(f"losses are {self.losses.shape}, but right is {self.right.shape}")

    @classmethod
    def empty(
        cls, kept: npt.NDArray[np.bool_], seeds: tuple[int, ...], n_test: int, **about: object
    ) -> SubsetBank:
        """A bank of which nothing is trained yet. about : optimizer, model, task and tables."""
        shape = (len(kept), len(seeds), n_test)
        return cls(kept, tuple(seeds), np.full(shape, np.nan), np.zeros(shape, bool), **about)  # type: ignore[arg-type]

    @property
    def fraction(self) -> float:
        """The share of the examples that a subset keeps; the mean, if subsets differ."""
        return float(self.kept.mean())

    @property
    def trained(self) -> npt.NDArray[np.bool_]:
        """bool [subset, seed]: which trainings are done."""
        return np.asarray(np.isfinite(self.losses).all(2))

    def mean_losses(self) -> Array:
        """float [subset, test]: the mean over seeds. NaN for a subset that lacks one of the seeds."""
        return np.asarray(self.losses.mean(1), np.float64)

    def share_right(self) -> Array:
        """float [subset, test]: the share of the seeds whose answer was right. NaN as in ``mean_losses``."""
        return np.where(np.isnan(self.mean_losses()), np.nan, self.right.mean(1))

    def complete(self) -> SubsetBank:
        """The subsets and seeds that are trained: first the seeds that all begun subsets share."""
        begun = self.trained.any(1)
        if not begun.any():
            raise RunDataError("no subset of this bank is trained yet")
        seeds = np.asarray(self.trained[begun].all(0))
        if not seeds.any():  # the first seed is still being trained
            seeds = np.asarray(self.trained.sum(0) == self.trained.sum(0).max())
        subsets = self.trained[:, seeds].all(1)
        return SubsetBank(
            self.kept[subsets],
            tuple(seed for seed, there in zip(self.seeds, seeds, strict=True) if there),
            self.losses[subsets][:, seeds],
            self.right[subsets][:, seeds],
            self.optimizer,
            self.model,
            self.task,
            self.tables,
        )

    def describe(self) -> str:
        """What must stand beside every number that is measured on the bank, in words."""
        subsets, seeds = len(self.kept), len(self.seeds)
        return (
            f"{self.task}, {self.model}: {subsets} subsets of {self.fraction:.0%}, {seeds}"
            f" seed{'s' * (seeds != 1)} each, {self.optimizer}"
        )

    def save(self, path: str | Path) -> None:
        """One parquet file, a row for each training; what was trained is in the metadata of its schema."""
        subset, seed = (index.ravel() for index in np.indices(self.losses.shape[:2]))
        about = {"format": _FORMAT, "optimizer": self.optimizer, "model": self.model, "task": self.task}
        about |= {"tables": json.dumps(asdict(self.tables))}
        table = pa.table(
            {
                "subset": subset.astype(np.int32),
                "seed": np.array(self.seeds, np.int64)[seed],
                "kept": _lists(self.kept[subset], pa.bool_()),
                "loss": _lists(self.losses[subset, seed].astype(np.float32), pa.float32()),
                "right": _lists(self.right[subset, seed], pa.bool_()),
            }
        ).replace_schema_metadata(about)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomically(Path(path), sink.getvalue().to_pybytes())

    @classmethod
    def load(cls, path: str | Path) -> SubsetBank:
        """What ``save`` wrote; RunDataError for anything else."""
        if not Path(path).is_file():
            raise RunDataError(f"there is no file {path}")
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise RunDataError(f"{path} is damaged or no parquet file: {error}") from error
        about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if about.get("format") != _FORMAT:
            raise RunDataError(f"{path} does not hold retrained subsets (expected format {_FORMAT!r})")
        try:
            return cls._from_table(table, about)
        except (KeyError, TypeError, ValueError) as error:
            raise RunDataError(f"{path} does not hold together: {error}") from error

    @classmethod
    def _from_table(cls, table: pa.Table, about: dict[str, str]) -> SubsetBank:
        seeds = tuple(dict.fromkeys(table["seed"].to_pylist()))
        subsets = len(table) // max(len(seeds), 1)
        expected = [(subset, seed) for subset in range(subsets) for seed in seeds]
        if list(zip(table["subset"].to_pylist(), table["seed"].to_pylist(), strict=True)) != expected:
            raise ValueError("its rows are not every subset with every seed, in order")
        shape = (subsets, len(seeds), -1)
        kept = np.array(table["kept"].to_pylist()).reshape(shape)
        if (kept != kept[:, :1]).any():
            raise ValueError("the seeds of one subset keep different examples")
        losses = np.array(table["loss"].to_pylist(), np.float64).reshape(shape)
        right = np.array(table["right"].to_pylist()).reshape(shape)
        tables = TableFingerprints(**json.loads(about["tables"]))
        return cls(
            kept[:, 0], seeds, losses, right, about["optimizer"], about["model"], about["task"], tables
        )


def _lists(values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    """[row, item] as a column of lists of one length."""
    flat = pa.array(np.ascontiguousarray(values).ravel(), kind)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def random_subsets(n_examples: int, fraction: float, count: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """bool [count, n_examples]: random subsets that keep ``fraction`` of the examples, rounded.

    Raises ValueError if a subset would keep none or all of the examples.
    """
    size = round(fraction * n_examples)
    if not 1 <= size < n_examples:
        raise ValueError(
            f"a subset keeps some and leaves out some of {n_examples} examples: fraction={fraction} gives"
            f" {size}"
        )
    rng = np.random.default_rng(seed)
    kept = np.zeros((count, n_examples), bool)
    for row in kept:
        row[rng.choice(n_examples, size, replace=False)] = True
    return kept
