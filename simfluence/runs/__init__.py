"""Recorded runs: what they are, how they lie on disk, and how simulators see them."""

from simfluence.runs.manage import RunSummary, list_runs, prune, show, verify
from simfluence.runs.run import Run
from simfluence.runs.runset import RunSet
from simfluence.runs.tables import ExampleTable, TableFingerprints
from simfluence.runs.transitions import Transitions, transitions

__all__ = [
    "ExampleTable",
    "Run",
    "RunSet",
    "RunSummary",
    "TableFingerprints",
    "Transitions",
    "list_runs",
    "prune",
    "show",
    "transitions",
    "verify",
]
