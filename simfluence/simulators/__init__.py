"""Simulators of training: fit them to recorded runs, ask them about other curricula.

Importing this package imports the file of every simulator, and so registers it in ``SIMULATORS``.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

from simfluence.errors import RunDataError
from simfluence.simulators import state as states
from simfluence.simulators.auto import AutoSimulator
from simfluence.simulators.bands import PredictiveBands
from simfluence.simulators.base import SIMULATORS, Simulator, register
from simfluence.simulators.baselines import MeanTrajectory, Persistence
from simfluence.simulators.dynamics.simulator import DynamicsSimulator
from simfluence.simulators.effects.simulator import EffectsSimulator
from simfluence.simulators.effects.transfer import FeatureSimulator
from simfluence.simulators.markov.simulator import (
    AdditiveSimulator,
    LinearSimulator,
    MultiplicativeSimulator,
    SimulationWarning,
)
from simfluence.simulators.scores import ScoresSimulator
from simfluence.simulators.shares import ShareSimulator


def make_simulator(name: str, **params: Any) -> Simulator:
    """The simulator of that name; ValueError for an unknown name or hyperparameter."""
    if name not in SIMULATORS:
        close = difflib.get_close_matches(name, SIMULATORS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no simulator is named {name!r}; there are {', '.join(SIMULATORS)}{hint}")
    known = list(inspect.signature(SIMULATORS[name]).parameters)
    for param in params:
        if param not in known:
            close = difflib.get_close_matches(param, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the simulator {name!r} has no hyperparameter {param!r}; {has}{hint}")
    return SIMULATORS[name](**params)


def load_simulator(path: str | Path) -> Simulator:
    """A fitted simulator from the file that its ``save`` wrote; RunDataError for any other file."""
    state = states.read(path)
    try:
        return SIMULATORS[state["name"]].from_state(state)
    except (KeyError, TypeError, ValueError) as error:
        raise RunDataError(f"{path} does not hold a whole simulator: {error}") from error


__all__ = [
    "SIMULATORS",
    "AdditiveSimulator",
    "AutoSimulator",
    "DynamicsSimulator",
    "EffectsSimulator",
    "FeatureSimulator",
    "LinearSimulator",
    "MeanTrajectory",
    "MultiplicativeSimulator",
    "Persistence",
    "PredictiveBands",
    "ScoresSimulator",
    "ShareSimulator",
    "SimulationWarning",
    "Simulator",
    "load_simulator",
    "make_simulator",
    "register",
]
