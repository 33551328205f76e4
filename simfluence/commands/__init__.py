"""The commands of ``simfluence``, one a file. To add one: a file with ``run(config)``, a line in ``COMMANDS``
and conf/<name>.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from omegaconf import DictConfig

Command = Callable[[DictConfig], None]

COMMANDS: dict[str, str] = {
    "record": "fine-tune a model under many curricula and record every run",
    "fit": "fit a simulator to a recorded run set and save it",
    "evaluate": "fit simulators on some runs, predict the others, print the table",
    "benchmark": "hold simulators and attribution methods to one standard, in paper tables",
    "whatif": "edit a curriculum, see the predicted change, verify it by retraining",
    "rank": "which training examples or groups help test examples most, and which hurt",
    "groups": "which training group teaches which test group, as a matrix",
    "interactions": "pairs of training groups or examples: redundant, independent or synergetic",
    "when": "what a training group changes by its place in training: early, middle, late",
    "search": "find the edit that minimises the predicted loss",
    "next_runs": "choose curricula to record, so that a question is answered best",
    "explore": "write a page in which what-ifs of a run are answered by hand",
    "attribute": "score training examples for test examples by an attribution method",
    "gradients": "store gradients of the training examples, to score any test examples",
    "runs": "list, show, verify and prune what is recorded",
    "predictability": "retrain runs from weights that hardly differ: a ceiling of skill",
}
"""What each does, in words."""


def command(name: str) -> Command:
    """The function of a command. Its module is imported only now, so that help is printed at once."""
    run: Command = import_module(f"simfluence.commands.{name}").run
    return run
