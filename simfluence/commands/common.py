"""What several commands need: configurations as plain values, run sets, simulators, notes and failures.

Libraries are imported by the functions that need them, so that help is printed at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from simfluence.fitted import Fitted
    from simfluence.runs import Run, RunSet
    from simfluence.simulators import Simulator


def fail(message: str) -> NoReturn:
    """Say what went wrong, in a sentence, and leave with status 2."""
    print(f"simfluence: {message}", file=sys.stderr)
    raise SystemExit(2)


def print_notes(notes: Iterable[str]) -> None:
    """A line each."""
    for note in notes:
        print(f"note: {note}")


def plain(config: Any) -> Any:
    """A configuration as dicts, lists, texts and numbers."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def with_folder(command: str, config: DictConfig) -> DictConfig:
    """The configuration of a command that reads runs, path=example replaced by the folder of that set.

    Raises ValueError if there is no such folder, and says how to get a run set.
    """
    if "path" not in config:
        return config
    from simfluence.runs import example

    if command == "record":
        if config.path == example.NAME:
            raise ValueError(
                f"path={example.NAME} names the set that travels with simfluence: record into another folder"
            )
        return config
    OmegaConf.resolve(config)  # a default output of ${path}/… lies in the folder that was named, not in ours
    if not (place := example.resolved(config.path)).exists():
        raise ValueError(
            f"there is no run set {config.path} here: path={example.NAME} takes the set that travels with"
            " simfluence; `simfluence record` makes one"
        )
    config.path = str(place)
    return config


def load(path: str) -> RunSet:
    """The run set in a folder."""
    from simfluence.runs import RunSet

    return RunSet.load(path)


def make_simulator(config: DictConfig, path: str | None = None) -> Simulator:
    """The simulator of a configuration, not yet fitted; its scores are read from their files.

    path : the folder of a run set. ``auto`` takes the scores that ``simfluence record`` left beside it, where
        the option ``scores`` is null; [] is none.
    """
    from simfluence.scores import INITIAL_SCORES, InfluenceScores
    from simfluence.simulators import make_simulator as by_name

    params = plain(config)
    if path is not None and params["name"] == "auto" and params["scores"] is None:
        params["scores"] = [file for file in [Path(path) / INITIAL_SCORES] if file.exists()]
    files = params.get("scores")
    if files == []:
        params["scores"] = None
    elif files:
        scores = [InfluenceScores.load(file) for file in files]
        params["scores"] = scores[0] if len(scores) == 1 else scores
    return by_name(**params)


def chosen_run(config: DictConfig, runs: RunSet) -> Run:
    """The run that ``run_id`` names, or the last of the set; RunDataError for a name that is not there."""
    return runs[runs.position(config.run_id) if config.run_id is not None else -1]


def fitted_for(config: DictConfig, runs: RunSet, run: Run) -> Fitted:
    """The simulator that a command asks about a run of a set, with bands of the option ``level``.

    It is read from the file that the option ``fitted`` names; or, where that is null, the option
    ``simulator`` is fitted to ``train`` and ``validation`` other runs of the set. Its notes are printed.
    """
    fitted = fit_or_read(config, runs, run)
    print_notes([*fitted.notes, *fitted.simulator.notes])
    return fitted


def fit_or_read(config: DictConfig, runs: RunSet, run: Run) -> Fitted:
    """As :func:`fitted_for`, without printing; a fit is kept beside the set, and read the next time."""
    from simfluence.fit_cache import fit_once
    from simfluence.fitted import fitted_for as fitted_for_run

    if config.fitted is not None:
        return fitted_for_run(runs, run, config.fitted, level=config.level)
    simulator = make_simulator(config.simulator, config.path)
    split = {"train": config.train, "validation": config.validation}
    fitted, kept = fit_once(config.path, runs, simulator, **split, level=config.level, held_out=run.id)
    notes = [*fitted.notes, *used_scores(config.path, config.simulator, simulator), *([kept] if kept else [])]
    return replace(fitted, notes=tuple(notes))


def used_scores(path: str, options: DictConfig, simulator: Simulator) -> list[str]:
    """A sentence on scores that lay beside the set and were taken without being asked for."""
    from simfluence.scores import INITIAL_SCORES

    given = options.get("scores")
    if given is not None or getattr(simulator, "scores", None) is None:
        return []
    return [f"with the scores in {Path(path) / INITIAL_SCORES} (scores=[] of the simulator goes without)"]


def check_top(top: int) -> None:
    """Raises ValueError unless at least one row is to be shown."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")


def say_and_write(
    config: DictConfig,
    runs: RunSet,
    asked: Run,
    name: str,
    frame: pd.DataFrame,
    shown: pd.DataFrame,
    figure: Figure,
    question: str,
    notes: Iterable[str] = (),
) -> None:
    """Print the question about the run ``asked``, notes and the rows that are shown; and write report.html,
    NAME.csv (the whole frame), .md, .tex, .png and .pdf into the folder of the option ``output``, if there is
    one.
    """
    from simfluence.questions.files import write_answer

    said = [*frame.attrs.get("notes", ()), *notes]
    print_notes(said)
    print(f"{question}\n\n{shown.to_string(index=False)}")
    if config.output is not None:
        from simfluence.html_report import About, made_by

        settings = {"run set": Path(config.path).name, "run": asked.id}
        about = About(question, settings, made_by(runs, asked))
        write_answer(frame, shown, figure, config.output, name, about, said)
        print(f"\nreport: {config.output}/report.html; all {len(frame)} rows: {config.output}/{name}.csv")


def widened(config: DictConfig, fitted: Fitted) -> float:
    """How many times as wide as otherwise bands are to be, after answers that were retrained."""
    from simfluence import verified

    if config.level is None or fitted.bands is None:
        return 1.0
    return verified.said(config.path, fitted.bands.level, fitted.simulator.name).widened
