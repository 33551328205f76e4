"""The registry of attribution methods, by the names that configurations, scores and users know them by.

A method registers itself, in its own file, as a function from the context to scores:

    @method("tfidf")
    def _tfidf(context: AttributionContext, **options: Any) -> InfluenceScores:
        return tfidf(context.train_texts, context.test_texts, **options)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simfluence.attribution.checkpoints import Checkpoint
from simfluence.attribution.objective import Objective
from simfluence.runs import Run
from simfluence.runs.tables import TableFingerprints
from simfluence.scores import InfluenceScores


@dataclass(frozen=True)
class AttributionContext:
    """All that an attribution method may need of a recorded run.

    objective : the model and its losses. train, test : examples as the objective takes them.
    train_texts, test_texts : the examples as a person would read them.
    checkpoints : weights of the run, in the order of their steps.
    tokens : example → its tokens as strings, as the model's layers see them.
    curvature : the examples that means over the training set are taken of, if they are more than ``train``.
    batch, optimizer : the number of examples in one of the run's steps, and the optimizer that trained it
        (``Run.optimizer``), where they are known.
    rates : gives the learning rate of each parameter, by name and relative to the run's, where groups of
        parameters have different ones (:func:`.groups.relative_rates`); else nothing.
    tables : the fingerprints of the tables that ``train`` and ``test`` are, where they are known.
    run : the recorded run, where the context is of one.
    """

    objective: Objective
    train: Sequence[Any]
    test: Sequence[Any]
    train_texts: Sequence[str]
    test_texts: Sequence[str]
    checkpoints: Sequence[Checkpoint]
    tokens: Callable[[Any], list[str]]
    curvature: Sequence[Any] | None = None
    batch: int | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    rates: Callable[[], Mapping[str, float]] = dict
    tables: TableFingerprints = field(default_factory=TableFingerprints)
    run: Run | None = None

    def at_last_checkpoint(
        self, scores_of: Callable[..., InfluenceScores], **options: Any
    ) -> InfluenceScores:
        """``scores_of(objective, train, test, **options)``, while the model has the last checkpoint's
        weights."""
        last = self.checkpoints[-1]
        with last.loaded(self.objective.module):
            found = scores_of(self.objective, self.train, self.test, **options)
        return replace(found, provenance={**found.provenance, "step": last.step})


Method = Callable[..., InfluenceScores]
"""(context, *, progress, other options) → scores."""

METHODS: dict[str, Method] = {}
"""Every registered method by its name, which is also the name of its configuration and of its scores."""


OF_ALL_EXAMPLES: set[str] = set()
"""The methods whose score of a training example depends on statistics of all training examples that they are
given (how rare words are, a sum of squared gradients), and so changes if some are left out."""


OF_ALL_CHECKPOINTS: set[str] = set()
"""The methods whose scores are of all checkpoints of a context together; other methods take the last one."""


OF_TEXTS: set[str] = set()
"""The methods that need the texts of a context alone, neither its model nor its examples."""


OF_WHOLE_RUN: set[str] = set()
"""The methods that train the context's run again, from its initial weights: its first checkpoint."""


def method(
    name: str,
    *,
    of_all_examples: bool = False,
    of_all_checkpoints: bool = False,
    of_texts: bool = False,
    of_whole_run: bool = False,
) -> Callable[[Method], Method]:
    """Registers the decorated function as the method of this name.

    of_all_examples : see :data:`OF_ALL_EXAMPLES`. Other methods that need means over the training set take
        them of ``AttributionContext.curvature``.
    of_all_checkpoints : see :data:`OF_ALL_CHECKPOINTS`. of_texts : see :data:`OF_TEXTS`.
    of_whole_run : see :data:`OF_WHOLE_RUN`; such a method is of all examples and of all checkpoints too.
    """

    def register(function: Method) -> Method:
        if name in METHODS:
            raise ValueError(f"two attribution methods are named {name!r}")
        METHODS[name] = function
        if of_all_examples or of_whole_run:
            OF_ALL_EXAMPLES.add(name)
        if of_all_checkpoints or of_whole_run:
            OF_ALL_CHECKPOINTS.add(name)
        if of_texts:
            OF_TEXTS.add(name)
        if of_whole_run:
            OF_WHOLE_RUN.add(name)
        return function

    return register
