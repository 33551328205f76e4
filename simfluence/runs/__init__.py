"""Recorded runs.

``run`` and ``runset`` are what users hold, over the ``tables`` of examples. ``storage``, ``journal`` and
``rows`` are how runs lie on disk, and ``manage`` looks after these files. ``long_table``, ``wide_table``,
``mixture_tables`` and ``gptfluence`` read what others recorded. ``transitions`` are the runs as simulators
are fitted to them.
"""

from simfluence.runs.manage import RunSummary, list_runs, prune, runs_start_alike, show, verify
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
    "runs_start_alike",
    "show",
    "transitions",
    "verify",
]
