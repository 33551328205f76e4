"""What several commands need: configurations as plain values, run sets, simulators, notes and failures.

Libraries are imported by the functions that need them, so that help is printed at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
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


def fitted_for(config: DictConfig, runs: RunSet, run: Run) -> Fitted:
    """The simulator of a command's configuration: read from the file ``fitted``, or fitted to runs of the set
    of which ``run``, which is asked about, is none.
    """
    from simfluence.fitted import Fitted, fit

    if config.fitted is not None:
        return Fitted.load(config.fitted)
    options = {"train": config.train, "validation": config.validation, "level": config.level}
    return fit(runs, make_simulator(config.simulator), **options, held_out=run.id)
