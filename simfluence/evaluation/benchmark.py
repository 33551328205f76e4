"""Hold methods to one standard on one set of recorded runs, cell by cell.

A method is a simulator, attribution scores made into one, or any object that predicts losses. A cell is one
method, fitted to so many of the training runs, on the test runs. Cells that are kept in a folder are not
computed again while the runs, the method and the code are the same.

    methods = simulator_methods({"linear": {"name": "linear"}}, sizes=[8, None])
    methods += score_methods(["ekfac.safetensors"], runs)
    found = benchmark(runs, methods, folder="runs/mine/benchmark/cells")
    print(found)

To put a method of one's own beside them: ``Method("mine", MySimulator)``, where ``MySimulator()`` has
``simulate(curricula, initial_loss)``, losses [run, step + 1, test], and, if it learns from runs,
``fit(train, validation)``. Or write its scores [train, test] as :class:`~simfluence.InfluenceScores`.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from simfluence.code_fingerprint import code_fingerprint
from simfluence.evaluation import metrics
from simfluence.evaluation.protocol import score, scores_as_simulators
from simfluence.evaluation.tables import off_scale, table
from simfluence.runs import Run, RunSet
from simfluence.simulators import MeanTrajectory, Persistence, SimulationWarning, make_simulator

FEW_TRAINING, FEW_TEST = 8, 5
"""Fewer runs than these to fit to, or to test on, are worth a caution."""

OF_A_CELL = ("fit_seconds", "answer_seconds", "unstable", "ties", "training_runs", "test_runs")
"""What is known of a whole cell; rows of these metrics have neither run nor test example. "unstable" is the
share of test examples under whose simulator differences grow, or whose losses are not finite; "ties" the
share of test runs in which final losses of two test examples are predicted to be equal."""


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    name : as tables show it. make : () → an object with ``simulate`` and, if it learns, ``fit``.
    runs : fitted to the first so many training runs; None: to all of them.
    every : fitted to losses at every so many steps only, and at the last.
    key : text that differs whenever the method does, for keeping cells; None: its cells are not kept.
    """

    name: str
    make: Callable[[], Any]
    runs: int | None = None
    every: int = 1
    key: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """scores : the long frame of all cells (run, test_example, method, metric, value), those of
    :data:`OF_A_CELL` included. ``print`` shows the table.
    """

    scores: pd.DataFrame

    @property
    def of_runs(self) -> pd.DataFrame:
        """The rows that :func:`.tables.summary`, :func:`.tables.table` and :mod:`.comparison` take."""
        return self.scores[~self.scores["metric"].isin(OF_A_CELL)]

    @property
    def of_cells(self) -> pd.DataFrame:
        """One row a method, one column for each of :data:`OF_A_CELL`."""
        rows = self.scores[self.scores["metric"].isin(OF_A_CELL)]
        wide = rows.pivot_table("value", "method", "metric", sort=False)
        return wide.reindex(index=rows["method"].unique(), columns=list(OF_A_CELL))

    def table(self) -> pd.DataFrame:
        """As :func:`.tables.table`, and what to be cautious of."""
        return table(self.of_runs).assign(caution=cautions(self))

    def __str__(self) -> str:
        return self.table().to_markdown(disable_numparse=True)


def simulator_methods(
    simulators: Mapping[str, Mapping[str, Any]], sizes: Sequence[int | None] = (None,), every: int = 1
) -> list[Method]:
    """Methods of simulators: name → ``make_simulator``'s arguments, each fitted to every number of runs."""
    return [
        Method(
            name + ("" if size is None else f", {_runs(size)}"),
            partial(make_simulator, **params),
            size,
            every,
            key=f"{name} {sorted(params.items())}",
        )
        for name, params in simulators.items()
        for size in sizes
    ]


def score_methods(files: Sequence[str | Path], runs: RunSet) -> list[Method]:
    """Methods of files of attribution scores: calibrated, as they are, and as the kernel of training dynamics
    (:func:`.protocol.scores_as_simulators`)."""
    found: dict[str, Method] = {}
    for file in map(str, files):
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for name, simulator in scores_as_simulators([file], runs).items():
            unique = f"{name} ({file})" if name in found else name
            found[unique] = Method(unique, partial(_same, simulator), key=f"{name} {digest}")
    return list(found.values())


def needs(
    simulators: Mapping[str, Mapping[str, Any]],
    scores: Sequence[str | Path],
    sizes: Sequence[int],
    every: Sequence[int],
    runs: int,
) -> list[Method]:
    """Methods that tell what simulators need: fitted to these numbers of runs, to losses known at every so
    many steps, and, of those that take them, with each file of scores.

    runs : how many there are; larger sizes are left out.
    """
    from simfluence.scores import InfluenceScores

    fitting = [size for size in sizes if size < runs]
    found = simulator_methods(simulators, [*fitting, None])
    for step in every:
        found += [
            replace(method, name=f"{method.name}, losses every {step} steps", every=step)
            for method in simulator_methods(simulators)
        ]
    for name, params in simulators.items():
        if "scores" not in params:
            continue
        for file in map(str, scores):
            given = InfluenceScores.load(file)
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
            key = f"{name} {sorted(params.items())} {digest}"
            stems = [Path(other).stem for other in scores]
            called = file if stems.count(Path(file).stem) > 1 else Path(file).stem
            found += [
                Method(
                    f"{name}, scores of {called}" + ("" if size is None else f", {_runs(size)}"),
                    partial(make_simulator, **{**params, "scores": given}),
                    size,
                    key=key,
                )
                for size in [*fitting[:1], None]
            ]
    return found


def _runs(number: int) -> str:
    return f"{number} run{'s' * (number > 1)}"


def _same(simulator: Any) -> Any:
    return simulator


def benchmark(
    runs: RunSet,
    methods: Sequence[Method],
    *,
    train: int = 20,
    validation: int = 2,
    test: int | None = None,
    folder: str | Path | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Benchmark:
    """Every method on the same test runs.

    Persistence and the mean trajectory are added if they are not among the methods.

    train, validation, test : numbers of runs, in their order, as ``RunSet.split_to_test`` takes them.
    folder : where cells are kept. processes : how many cells at a time.

    Raises
    ------
    ValueError : two methods have the same name, or a method gives losses of another shape.
    """
    methods = list(methods)
    names = [method.name for method in methods]
    for baseline in (MeanTrajectory, Persistence):
        if baseline.name not in names:
            methods.insert(0, Method(baseline.name, baseline, key=baseline.name))
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two methods are named {twice[0]!r}: rows are told apart by their names")
    parts = runs.split_to_test(train, validation, test)[:3]
    kept = {method.name: _kept(folder, method, parts) for method in methods}
    pending = [method for method in methods if kept[method.name] is None]
    cells = Parallel(n_jobs=processes, return_as="generator")(delayed(_cell)(one, *parts) for one in pending)
    bar = tqdm(total=len(pending), desc="benchmark", unit="cell", disable=not (progress and pending))
    with bar:
        for method, cell in zip(pending, cells, strict=True):
            kept[method.name] = cell
            _keep(folder, method, parts, cell)
            bar.update()
    return Benchmark(pd.concat([kept[name] for name in names], ignore_index=True))


def cautions(found: Benchmark) -> pd.Series:
    """Method → why its numbers should be taken with care; "" where there is no reason."""
    cells, large = found.of_cells, off_scale(found.of_runs)
    baselines = (MeanTrajectory.name, Persistence.name)

    def said(name: str, cell: pd.Series) -> str:
        learns = name not in baselines
        reasons = [
            (
                learns and cell["training_runs"] < FEW_TRAINING,
                f"fitted to {_runs(int(cell['training_runs']))}",
            ),
            (cell["test_runs"] < FEW_TEST, f"tested on {_runs(int(cell['test_runs']))}"),
            (cell["unstable"] > 0, f"unstable for {cell['unstable']:.0%} of test examples"),
            (cell["ties"] > 0, f"ties in {cell['ties']:.0%} of runs"),
            (name in large, "errors off scale"),
        ]
        return "; ".join(words for holds, words in reasons if holds)

    return pd.Series({name: said(str(name), cell) for name, cell in cells.iterrows()}, dtype=object)


# ------------------------------------------------------------------------------------------ one cell


def _cell(method: Method, train: RunSet, validation: RunSet, test: RunSet) -> pd.DataFrame:
    """The scores of one method, and what is known of the cell. Unstable fits are cautions, not warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimulationWarning)
        return _measured(method, train, validation, test)


def _measured(method: Method, train: RunSet, validation: RunSet, test: RunSet) -> pd.DataFrame:
    if method.runs is not None:
        train = train[: method.runs]
    if method.every > 1:
        train, validation = (_thinned(part, method.every) for part in (train, validation))
    simulator = method.make()
    start = time.perf_counter()
    if hasattr(simulator, "fit"):
        fitted = simulator.fit(train, validation if len(validation) else None)
        simulator = simulator if fitted is None else fitted
    between = time.perf_counter()
    simulated = np.asarray(simulator.simulate(test.curricula, test.initial_loss), np.float64)
    end = time.perf_counter()
    if simulated.shape != test.loss.shape:
        raise ValueError(
            f"{method.name}: expected losses [run, step + 1, test] = {test.loss.shape}, got {simulated.shape}"
        )
    final = metrics.final_loss(simulated, known=test.loss)
    grows = getattr(simulator, "diagnostics_", {}).get("unstable", 0.0)
    infinite = (~np.isfinite(simulated) & np.isfinite(test.loss)).any(axis=(0, 1)).mean()
    about = {
        "fit_seconds": between - start,
        "answer_seconds": (end - between) / len(test),
        "unstable": max(float(grows), float(infinite)),
        "ties": float(np.mean([_has_ties(row) for row in final])),
        "training_runs": len(train),
        "test_runs": len(test),
    }
    rows = pd.DataFrame(
        [("", "", method.name, metric, float(value)) for metric, value in about.items()],
        columns=["run", "test_example", "method", "metric", "value"],
    )
    return pd.concat([score(method.name, test, simulated), rows], ignore_index=True)


def _has_ties(losses: metrics.Array) -> bool:
    known = losses[np.isfinite(losses)]
    return len(np.unique(known)) < len(known)


def _thinned(runs: RunSet, every: int) -> RunSet:
    """The same runs, of which losses are known at every so many steps only, and at the last."""

    def thinned(run: Run) -> Run:
        evaluated = np.asarray(run.evaluated)
        chosen = (evaluated % every == 0) | (evaluated == evaluated[-1])
        kept = {name: values[chosen] for name, values in run.metrics.items()}
        return replace(run, evaluated=evaluated[chosen], metrics=kept)

    return RunSet([thinned(run) for run in runs], runs.train, runs.test)


def _file(folder: str | Path, method: Method, parts: Sequence[RunSet]) -> Path:
    said = [code_fingerprint(), method.name, str(method.key), str(method.runs), str(method.every)]
    said += ["|".join(run.fingerprint for run in part) for part in parts]
    return Path(folder) / f"{hashlib.sha256(chr(0).join(said).encode()).hexdigest()[:24]}.parquet"


def _kept(folder: str | Path | None, method: Method, parts: Sequence[RunSet]) -> pd.DataFrame | None:
    if folder is None or method.key is None or not (file := _file(folder, method, parts)).exists():
        return None
    return pd.read_parquet(file)


def _keep(folder: str | Path | None, method: Method, parts: Sequence[RunSet], cell: pd.DataFrame) -> None:
    if folder is not None and method.key is not None:
        file = _file(folder, method, parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        cell.to_parquet(temporary)
        temporary.replace(file)
