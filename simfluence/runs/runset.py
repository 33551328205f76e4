"""A set of runs that share one training table and one test table."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import storage
from simfluence.runs.run import FloatArray, Run
from simfluence.runs.tables import ExampleTable


class RunSet:
    """Runs over the same examples, in a fixed order; ``runs[0]`` is a Run, ``runs[2:5]`` a RunSet.

    Parameters
    ----------
    runs : the runs; their names must differ.
    train, test : the tables that curricula and losses are indexed by.

    Raises
    ------
    RunDataError : a run that is about other examples than the tables.
    """

    def __init__(self, runs: Sequence[Run], train: ExampleTable, test: ExampleTable) -> None:
        self.runs = list(runs)
        self.train = train
        self.test = test
        for run in self.runs:
            if run.curriculum.n_examples != len(train) or run.loss.shape[1] != len(test):
                raise RunDataError(
                    f"run {run.id!r} is about {run.curriculum.n_examples} training and"
                    f" {run.loss.shape[1]} test examples, but the set's tables have"
                    f" {len(train)} and {len(test)}"
                )
        ids = [run.id for run in self.runs]
        if len(set(ids)) < len(ids):
            raise RunDataError(f"the runs of a set need different names, got {sorted(ids)}")

    # ------------------------------------------------------------------------- making, reading

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        incomplete: bool = False,
        verify: bool = True,
        unreadable: Literal["raise", "skip"] = "raise",
    ) -> RunSet:
        """The complete runs in a folder (with ``incomplete``, also what there is of the others).

        ``verify`` checks every file against its manifest's checksum. A warning names the runs left out.
        ``unreadable="skip"`` also leaves out runs that cannot be read, instead of raising an error.

        Raises
        ------
        RunDataError : the folder is no run set, holds no such run, or a file of it is damaged or
            about other examples; the message names the file.
        """
        if unreadable not in ("raise", "skip"):
            raise ValueError(f"unreadable must be 'raise' or 'skip', got {unreadable!r}")
        path = Path(path)
        train, test = storage.read_examples(path)
        runs = []
        left_out = []
        for run_id in storage.run_ids(path):
            folder = path / run_id
            try:
                storage.check_tables(folder, storage.read_manifest(folder), train, test)
                if incomplete or storage.status(folder) == "complete":
                    runs.append(storage.read_run(folder, len(train), len(test), verify=verify))
                else:
                    left_out.append(f"{run_id} ({storage.status(folder)})")
            except RunDataError as error:
                if unreadable == "raise":
                    raise RunDataError(f"{error} (unreadable='skip' loads the other runs)") from error
                left_out.append(f"{run_id} (unreadable: {error})")
        if not runs:
            hint = (
                "" if incomplete else ": incomplete=True loads what there is of interrupted and failed ones"
            )
            raise RunDataError(
                f"{path} holds no {'readable' if incomplete else 'complete'} run"
                + (f"; there are {', '.join(left_out)}{hint}" if left_out else "")
            )
        if left_out:
            warnings.warn(f"{path}: left out {', '.join(left_out)}", stacklevel=2)
        return cls(runs, train, test)

    @classmethod
    def from_arrays(
        cls,
        batches: Iterable[Any],
        losses: Iterable[Any],
        *,
        train: ExampleTable | int | None = None,
        test: ExampleTable | None = None,
        learning_rate: npt.ArrayLike | None = None,
        optimizer: Mapping[str, Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> RunSet:
        """A set from plain arrays.

        Parameters
        ----------
        batches : int [run, step, batch], row numbers of training examples; or nested sequences,
            where runs differ in length or steps in size.
        losses : float [run, step + 1, test]; or one such array [step + 1, test] a run.
        train : the training table or its size; by default the largest number that occurs, plus one.
        test : the test table; by default numbered.
        learning_rate : float [run, step] or [step], if known.
        optimizer : class and settings, if known (as the recorder logs them).
        allow_nonfinite : whether NaN and infinite losses are let in (simulators leave them out).

        Raises
        ------
        RunDataError : shapes that do not fit, or losses that are not finite (named by run, step
            and test example).
        """
        all_batches = list(batches)
        all_losses = [_loss_array(values, run) for run, values in enumerate(losses)]
        if not all_batches or len(all_batches) != len(all_losses):
            raise RunDataError(
                f"expected as many runs of batches as of losses, at least one; got"
                f" {len(all_batches)} and {len(all_losses)}"
            )
        if train is None:
            train = 1 + max(int(np.max(batch)) for steps in all_batches for batch in steps)
        train_table = train if isinstance(train, ExampleTable) else ExampleTable.numbered(train)
        test_table = test or ExampleTable.numbered(all_losses[0].shape[1])
        runs = []
        for number, (steps, values) in enumerate(zip(all_batches, all_losses, strict=True)):
            curriculum = Curriculum.from_batches(steps, len(train_table))
            if len(values) != len(curriculum) + 1:
                raise RunDataError(
                    f"run {number}: {len(curriculum)} steps need {len(curriculum) + 1} rows of losses"
                    f" (the first before the first step), got {len(values)}"
                )
            if not allow_nonfinite and (bad := np.argwhere(~np.isfinite(values))).size:
                step, z = bad[0]
                raise RunDataError(
                    f"run {number}: the loss of test example {test_table.ids[z]!r} at step {step} is"
                    f" {values[step, z]} ({len(bad)} losses are not finite); leave the run out, or"
                    " pass allow_nonfinite=True to have simulators leave these transitions out"
                )
            rate = np.full(len(curriculum), np.nan)
            if learning_rate is not None:
                given = np.asarray(learning_rate, np.float64)
                rate = np.array(given if given.ndim == 1 else given[number])
            runs.append(
                Run(
                    id=f"run-{number:03d}",
                    curriculum=curriculum,
                    metrics={"loss": values},
                    evaluated=np.arange(len(values)),
                    learning_rate=rate,
                    train_loss=np.full(len(curriculum), np.nan),
                    optimizer=dict(optimizer or {}),
                )
            )
        return cls(runs, train_table, test_table)

    @classmethod
    def from_table(cls, table: Any, **options: Any) -> RunSet:
        """From a long table or its .csv or .parquet file, see :mod:`simfluence.runs.long_table`."""
        from simfluence.runs.long_table import from_table

        return from_table(table, **options)

    def to_table(self, path: str | Path | None = None) -> pd.DataFrame:
        """As a long table, see :mod:`simfluence.runs.long_table`."""
        from simfluence.runs.long_table import to_table

        return to_table(self, path)

    @classmethod
    def from_gptfluence(cls, path: str | Path, **options: Any) -> RunSet:
        """From GPTfluence's run logs, see :mod:`simfluence.runs.gptfluence`."""
        from simfluence.runs.gptfluence import from_gptfluence

        return from_gptfluence(path, **options)

    def save(self, path: str | Path, *, text: bool = True) -> None:
        """Write the set to a new folder (without the examples' texts, if ``text`` is False).

        Raises RunDataError if the folder already holds a run set.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        if (path / storage.EXAMPLES).exists():
            raise RunDataError(f"{path} holds a run set already; choose another folder")
        tables = [table if text else table.without_text() for table in (self.train, self.test)]
        storage.write_examples(path, *tables)
        for run in self.runs:
            storage.write_run(path / storage.check_run_id(run.id), run, self.train, self.test)

    # ----------------------------------------------------------------------------- parts of it

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    @overload
    def __getitem__(self, which: int) -> Run: ...
    @overload
    def __getitem__(self, which: slice | Sequence[int] | npt.NDArray[np.int64]) -> RunSet: ...
    def __getitem__(self, which: Any) -> Run | RunSet:
        if isinstance(which, int | np.integer):
            return self.runs[which]
        chosen = self.runs[which] if isinstance(which, slice) else [self.runs[i] for i in which]
        return RunSet(chosen, self.train, self.test)

    def __repr__(self) -> str:
        return f"RunSet({len(self)} runs, {len(self.train)} training and {len(self.test)} test examples)"

    def position(self, run_id: str) -> int:
        """The number of the run of that name; RunDataError naming those there are."""
        if run_id not in self.ids:
            raise RunDataError(f"there is no complete run {run_id!r}; there are {', '.join(self.ids)}")
        return self.ids.index(run_id)

    def split(
        self, train: int, validation: int = 0, test: int | None = None, *, seed: int | None = None
    ) -> tuple[RunSet, RunSet, RunSet]:
        """Disjoint sets of that many runs: for fitting, choosing and scoring.

        ``test`` None takes all that are left. In the set's order, or drawn by ``seed``. Runs are
        the unit: no step of a run ever stands on both sides.

        Raises ValueError if there are too few runs.
        """
        if test is None:
            test = max(len(self) - train - validation, 0)
        if min(train, validation, test) < 0 or train + validation + test > len(self):
            raise ValueError(
                f"cannot split {len(self)} runs into {train} for training, {validation} for"
                f" validation and {test} for testing"
            )
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        a, b, c = np.cumsum([train, validation, test])
        return self[order[:a]], self[order[a:b]], self[order[b:c]]

    # ------------------------------------------------------------------------------- as arrays

    @property
    def ids(self) -> list[str]:
        return [run.id for run in self.runs]

    @property
    def curricula(self) -> list[Curriculum]:
        return [run.curriculum for run in self.runs]

    @property
    def initial_loss(self) -> npt.NDArray[np.float64]:
        """float64 [run, test]: the losses before the first step."""
        return np.stack([run.initial_loss for run in self.runs]).astype(np.float64)

    @property
    def loss(self) -> npt.NDArray[np.float64]:
        """float64 [run, step + 1, test]; NaN at steps that a run did not reach or did not evaluate."""
        steps = max(len(run) for run in self.runs) + 1
        values = np.full((len(self), steps, len(self.test)), np.nan)
        for number, run in enumerate(self.runs):
            values[number, run.evaluated] = run.loss
        return values


def _loss_array(values: npt.ArrayLike, run: int) -> FloatArray:
    array = np.array(values)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise RunDataError(f"run {run}: losses must be [step + 1, test], got shape {array.shape}")
    return array
