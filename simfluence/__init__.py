"""Record fine-tuning runs, fit a simulator of training to them, ask it what another curriculum would
have taught, and measure any data-attribution method by how well it predicts training.

The names below are imported on first use, so that reading recordings does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Curriculum": "simfluence.curriculum",
    "ExampleTable": "simfluence.runs",
    "Run": "simfluence.runs",
    "RunSet": "simfluence.runs",
    "RunRecorder": "simfluence.recording",
    "Persistence": "simfluence.simulators",
    "MeanTrajectory": "simfluence.simulators",
    "AdditiveSimulator": "simfluence.simulators",
    "MultiplicativeSimulator": "simfluence.simulators",
    "LinearSimulator": "simfluence.simulators",
    "EffectsSimulator": "simfluence.simulators",
    "DynamicsSimulator": "simfluence.simulators",
    "ScoresSimulator": "simfluence.simulators",
    "ShareSimulator": "simfluence.simulators",
    "FeatureSimulator": "simfluence.simulators",
    "AutoSimulator": "simfluence.simulators",
    "PredictiveBands": "simfluence.simulators",
    "load_simulator": "simfluence.simulators",
    "evaluate": "simfluence.evaluation",
    "Edit": "simfluence.edit",
    "Edits": "simfluence.edit",
    "Fitted": "simfluence.fitted",
    "fit": "simfluence.fitted",
    "ask": "simfluence.whatif",
    "what_if": "simfluence.whatif",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from simfluence.curriculum import Curriculum as Curriculum
    from simfluence.edit import Edit as Edit
    from simfluence.edit import Edits as Edits
    from simfluence.evaluation import evaluate as evaluate
    from simfluence.fitted import Fitted as Fitted
    from simfluence.fitted import fit as fit
    from simfluence.recording import RunRecorder as RunRecorder
    from simfluence.runs import ExampleTable as ExampleTable
    from simfluence.runs import Run as Run
    from simfluence.runs import RunSet as RunSet
    from simfluence.simulators import AdditiveSimulator as AdditiveSimulator
    from simfluence.simulators import AutoSimulator as AutoSimulator
    from simfluence.simulators import DynamicsSimulator as DynamicsSimulator
    from simfluence.simulators import EffectsSimulator as EffectsSimulator
    from simfluence.simulators import FeatureSimulator as FeatureSimulator
    from simfluence.simulators import LinearSimulator as LinearSimulator
    from simfluence.simulators import MeanTrajectory as MeanTrajectory
    from simfluence.simulators import MultiplicativeSimulator as MultiplicativeSimulator
    from simfluence.simulators import Persistence as Persistence
    from simfluence.simulators import PredictiveBands as PredictiveBands
    from simfluence.simulators import ScoresSimulator as ScoresSimulator
    from simfluence.simulators import ShareSimulator as ShareSimulator
    from simfluence.simulators import load_simulator as load_simulator
    from simfluence.whatif import ask as ask
    from simfluence.whatif import what_if as what_if


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simfluence' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
