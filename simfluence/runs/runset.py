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
from simfluence.runs import example, gptfluence, long_table, mixture_tables, storage, streams
from simfluence.runs.importing import InitialLoss, Read, check_finite, runs_of
from simfluence.runs.run import FloatArray, Run
from simfluence.runs.start import start_alike
from simfluence.runs.tables import ExampleTable


class RunSet:
    """Runs over the same examples, in a fixed order; ``runs[0]`` is a Run, ``runs[2:5]`` a RunSet.

    Parameters
    ----------
    runs : the runs; their names must differ.
    train, test : the tables that curricula and losses are indexed by.

    Raises
    ------
    RunDataError : a run is about another number of examples than the tables, or two runs have one name.
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
        train, test = storage.read_tables(path)
        n_train = None if train is None else len(train)
        runs, streamed = [], []
        left_out = []
        for run_id in storage.run_ids(path):
            folder = path / run_id
            try:
                storage.check_tables(folder, storage.read_manifest(folder), train, test)
                if incomplete or storage.status(folder) == "complete":
                    run = storage.read_run(folder, n_train, len(test), verify=verify)
                    if train is None:
                        streamed.append(streams.read_table(folder))
                    runs.append(run)
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
        if train is None:
            train = streams.union(streamed)
            runs = [streams.renumbered(run, own, train) for run, own in zip(runs, streamed, strict=True)]
        return cls(runs, train, test)

    @classmethod
    def example(cls) -> RunSet:
        """The set that travels with the package: 32 fine-tuning runs (:mod:`simfluence.runs.example`)."""
        return cls.load(example.folder())

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
        batches : int [run, step, batch], row numbers of training examples; or nested sequences of them,
            where runs differ in length or batches in size; or curricula.
        losses : float [run, step + 1, test], the first before the first step; or an array
            [step + 1, test] for each run.
        train : the training table or its size; by default the largest number that occurs, plus one.
        test : the test table; by default numbered.
        learning_rate : float [run, step] or [step], if known.
        optimizer : class and settings, if known (as the recorder logs them).
        allow_nonfinite : whether losses may be NaN or infinite (simulators leave them out).

        Raises
        ------
        RunDataError : the shapes do not fit, or a loss is not finite (the run, the step and the test example
            are named).
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
            curriculum = (
                steps if isinstance(steps, Curriculum) else Curriculum.from_batches(steps, len(train_table))
            )
            if len(values) != len(curriculum) + 1:
                raise RunDataError(
                    f"run {number}: {len(curriculum)} steps need {len(curriculum) + 1} rows of losses"
                    f" (the first before the first step), got {len(values)}"
                )
            if not allow_nonfinite:
                check_finite(f"run {number}", values, range(len(values)), test_table)
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
    def from_table(
        cls,
        table: long_table.Table,
        *,
        batches: long_table.Batches | None = None,
        prefix: str = "",
        train: ExampleTable | None = None,
        test: ExampleTable | None = None,
        dtype: npt.DTypeLike | None = None,
        initial_loss: InitialLoss = None,
        optimizer: Mapping[str, Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> RunSet:
        """A set from a data frame, or from a .csv or .parquet file of one.

        The table is long (:mod:`simfluence.runs.long_table`: a row for each example that a step consumed, and
        for each loss) or wide (:mod:`simfluence.runs.wide_table`: a row for each step, and a column for each
        test example, as experiment trackers export them).

        Parameters
        ----------
        batches : what the steps consumed, if the table does not say it: run name → a list of ids for each
            step, or a table with the columns run, step and example.
        prefix : what the names of a wide table's columns of losses begin with, as "loss/"; the rest is the
            test example's id. By default every column that has no other meaning holds losses.
        train, test : the tables of examples; by default of the ids that occur, in natural order.
        dtype : of the losses; by default the table's (float64 from CSV).
        initial_loss : the losses before the first step, for runs that have none: test id → loss, or an array
            [test] or [run, test]; "first" begins every run at the first losses it has, and leaves out the
            steps up to these.
        optimizer : class and settings of the optimizer of all runs, if known (as the recorder logs them).
        allow_nonfinite : whether losses may be missing, NaN or infinite (simulators leave them out).

        Raises
        ------
        RunDataError : a column, a step or a loss is missing; a row says nothing, or two things; a loss stands
            twice; or an id is not in its table. The message names the row or the run.
        """
        options: dict[str, Any] = {"batches": batches, "prefix": prefix, "dtype": dtype}
        read = long_table.read(table, train=train, test=test, allow_missing=allow_nonfinite, **options)
        return cls._of_logs(read, initial_loss, optimizer, allow_nonfinite)

    def to_table(self, path: str | Path | None = None) -> pd.DataFrame:
        """The set as a long table (:mod:`simfluence.runs.long_table`), which is also written to ``path``, a
        name that ends in .csv or .parquet. ``from_table`` reads it back without loss.
        """
        return long_table.write(self.runs, self.train, self.test, path)

    @classmethod
    def from_gptfluence(
        cls,
        path: str | Path,
        *,
        train: ExampleTable | None = None,
        test: ExampleTable | None = None,
        initial_loss: InitialLoss = "first",
        optimizer: Mapping[str, Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> RunSet:
        """A set from the run logs of GPTfluence (:mod:`simfluence.runs.gptfluence`), a folder for each run.

        The options mean the same as in :meth:`from_table`. The published logs have no losses before the first
        step, so by default a run begins at the first losses it has.
        """
        read = gptfluence.read(path, train=train, test=test)
        return cls._of_logs(read, initial_loss, optimizer, allow_nonfinite)

    @classmethod
    def from_mixtures(
        cls,
        proportions: pd.DataFrame | str | Path,
        losses: pd.DataFrame | str | Path,
        *,
        units: float | Mapping[Any, float] = 1.0,
        run: str = "run",
        step: str = "step",
        share_prefix: str = "",
        loss_prefix: str = "",
        normalize: bool = False,
        initial_loss: InitialLoss = None,
        optimizer: Mapping[str, Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> RunSet:
        """A set of runs on mixtures of data, from two tables that may be one: which share of every group a
        run consumed, and its losses by domain (:mod:`simfluence.runs.mixture_tables`).

        Parameters
        ----------
        units : how much a training step consumes, as tokens: one number, or run name → number.
        run, step : what these columns are called. Without a column of steps, proportions hold for the whole
            run, and losses are those at its end.
        share_prefix, loss_prefix : what the names of the columns of shares and losses begin with; the rest
            names the group or the domain. By default all others in their table.
        normalize : whether to divide shares that do not sum to 1, as percentages, by their sum.
        initial_loss, optimizer, allow_nonfinite : as in :meth:`from_table`. Of a language model that predicts
            at random, the initial loss is the logarithm of the size of its vocabulary.

        Raises
        ------
        RunDataError : shares do not sum to 1 (by how much is said) or are negative; units are negative; a
            run is in one table only, stands twice, or has losses after its proportions end; or a value is
            missing.
        """
        shares = mixture_tables.Table.of(proportions, "proportions", run, step, share_prefix)
        by_domain = mixture_tables.Table.of(losses, "losses", run, step, loss_prefix)
        read = mixture_tables.read(shares, by_domain, units, normalize=normalize)
        return cls._of_logs(read, initial_loss, optimizer, allow_nonfinite)

    @classmethod
    def _of_logs(cls, read: Read, *options: Any) -> RunSet:
        """``options`` : as in :func:`~simfluence.runs.importing.runs_of`."""
        return cls(runs_of(*read, *options), *read[1:])

    def save(self, path: str | Path, *, text: bool = True) -> None:
        """Write the set to a new folder; without the texts of the examples, if ``text`` is False.

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
        """The position of a run in the set. Raises RunDataError if there is no run of that name."""
        if run_id not in self.ids:
            raise RunDataError(f"there is no complete run {run_id!r}; there are {', '.join(self.ids)}")
        return self.ids.index(run_id)

    def split(
        self, train: int, validation: int = 0, test: int | None = None, *, seed: int | None = None
    ) -> tuple[RunSet, RunSet, RunSet]:
        """Split the runs into three disjoint sets: to fit simulators, to choose one, and to score it.

        A run is never divided, so that no step of it is in two sets.

        Parameters
        ----------
        train, validation, test : how many runs each set gets; test None takes all that are left.
        seed : of the random order in which the runs are dealt out; None deals them in the set's order.

        Raises
        ------
        ValueError : there are too few runs.
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

    def split_to_fit(
        self, train: int, validation: int = 0, *, held_out: str | None = None
    ) -> tuple[RunSet, RunSet, list[str]]:
        """The first runs, for fitting and for choosing; where there are fewer, all of them for fitting.

        held_out : the name of a run that is left out of both, unless it is the only one.

        Returns (training runs, validation runs, notes), the notes being sentences on what was done otherwise.
        """
        if held_out is not None and len(self) == 1:
            return *self.split(1)[:2], [f"fitted to {held_out} itself, since the set has no other run"]
        others = self[[number for number, run in enumerate(self.ids) if run != held_out]]
        if len(others) >= (wanted := train + validation):
            return *others.split(train, validation)[:2], []
        but = "" if held_out is None else f" but {held_out}"
        note = f"fewer runs than train + validation = {wanted}: fitted to all{but}"
        return *others.split(len(others))[:2], [note]

    def split_to_test(
        self, train: int, validation: int = 0, test: int | None = None, *, seed: int | None = None
    ) -> tuple[RunSet, RunSet, RunSet, list[str]]:
        """As :meth:`split`; where there are fewer runs, a quarter of them (or ``test``) to be predicted, and
        all others for fitting.

        Returns (training runs, validation runs, test runs, notes), the notes being sentences on what was done
        otherwise.

        Raises ValueError if no run would be left to fit to.
        """
        wanted = train + validation + (1 if test is None else test)
        if min(train, validation, test or 0) < 0 or len(self) >= wanted:
            return *self.split(train, validation, test, seed=seed), []
        held_out = max(len(self) // 4, 1) if test is None else test
        if held_out >= len(self):
            raise ValueError(
                f"of {len(self)} runs, {held_out} to be predicted leave none to fit to; record more runs"
            )
        parts = self.split(len(self) - held_out, 0, held_out, seed=seed)
        note = f"fewer runs than train + validation + test = {wanted}: "
        note += f"fitted to {len(parts[0])}, tested on {held_out}"
        return *parts, [note]

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
    def start_alike(self) -> bool | None:
        """Whether all runs start from the same weights, by the fingerprints of these where all have one,
        else by their initial losses (:mod:`simfluence.runs.start`); None if it is not known.
        """
        first = [run.loss[0] if run.evaluated[0] == 0 else None for run in self.runs]
        return start_alike(
            [run.initial_weights for run in self.runs], first, [run.loss[-1] for run in self.runs]
        )

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
