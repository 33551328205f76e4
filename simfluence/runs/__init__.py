"""Recorded runs: what they are, how they lie on disk, and how simulators see them."""

from simfluence.runs.run import Run
from simfluence.runs.runset import RunSet
from simfluence.runs.tables import ExampleTable
from simfluence.runs.transitions import Transitions, transitions

__all__ = ["ExampleTable", "Run", "RunSet", "Transitions", "transitions"]
