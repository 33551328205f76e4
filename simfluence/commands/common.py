"""What several commands need: configurations as plain values, run sets, simulators, notes and failures.

Libraries are imported by the functions that need them, so that help is printed at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
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


def load(path: str) -> RunSet:
    """The run set in a folder."""
    from simfluence.runs import RunSet

    return RunSet.load(path)


def make_simulator(config: DictConfig) -> Simulator:
    """The simulator of a configuration, not yet fitted; its scores are read from their files."""
    from simfluence.attribution import InfluenceScores
    from simfluence.simulators import make_simulator as by_name

    params = plain(config)
    if files := params.get("scores"):
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
    from simfluence.fitted import fitted_for as fitted_for_run

    fitted = fitted_for_run(
        runs,
        run,
        make_simulator(config.simulator) if config.fitted is None else config.fitted,
        train=config.train,
        validation=config.validation,
        level=config.level,
    )
    print_notes([*fitted.notes, *fitted.simulator.notes])
    return fitted


def check_top(top: int) -> None:
    """Raises ValueError unless at least one row is to be shown."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")


def say_and_write(
    config: DictConfig,
    name: str,
    frame: pd.DataFrame,
    shown: pd.DataFrame,
    figure: Figure,
    question: str,
    notes: Iterable[str] = (),
) -> None:
    """Print the question, notes and the rows that are shown; and write NAME.csv (the whole frame), .md, .tex,
    .png and .pdf into the folder of the option ``output``, if there is one.
    """
    from simfluence.questions.files import write_answer

    print_notes([*frame.attrs.get("notes", ()), *notes])
    print(f"{question}\n\n{shown.to_string(index=False)}")
    if config.output is not None:
        write_answer(frame, shown, figure, config.output, name, question, *frame.attrs.get("notes", ()))
        print(f"\nall {len(frame)} rows and the figure: {config.output}/{name}.csv, .md, .tex, .png, .pdf")


def widened(config: DictConfig, fitted: Fitted) -> float:
    """How many times as wide as otherwise bands are to be, after answers that were retrained."""
    from simfluence import verified

    if config.level is None or fitted.bands is None:
        return 1.0
    return verified.said(config.path, fitted.bands.level, fitted.simulator.name).widened
