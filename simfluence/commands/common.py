"""What several commands need: configurations as plain values, run sets, simulators, notes and failures.

Libraries are imported by the functions that need them, so that help is printed at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from simfluence.runs import RunSet
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


def make_simulator(config: DictConfig) -> Simulator:
    """The simulator of a configuration, not yet fitted; its scores are read from their files."""
    from simfluence.attribution import InfluenceScores
    from simfluence.simulators import make_simulator as by_name

    params = plain(config)
    if files := params.get("scores"):
        scores = [InfluenceScores.load(file) for file in files]
        params["scores"] = scores[0] if len(scores) == 1 else scores
    return by_name(**params)
