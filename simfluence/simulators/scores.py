"""Attribution scores as a simulator: what a method predicts if its scores are added up.

    L_t = L_0 − k Σ_{s≤t} w_s Σ_{i∈c_s} S_i(z) / |c_s|

Of scores at several steps of a run, S is that with the latest weights before the step ("TracIn-CP, all steps"
in Guu et al. 2023). As they are, k is what the scores themselves state (TracIn, Pruthi et al. 2020: w_s the
learning rate, k = 1). Calibrated, k is the one number that fits the training runs
best, by least squares over all recorded losses:

    k = −Σ P (L − L_0) / Σ P²,   P the double sum above
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, count_matrix
from simfluence.runs import RunSet
from simfluence.runs.schedule import as_schedule, mean_learning_rate
from simfluence.runs.tables import TableFingerprints
from simfluence.simulators.base import Array, Simulator, register
from simfluence.simulators.state import saved

Weighing = Literal["rate", "use", "run", ""]
"""What one use of an example in a step weighs: the step's learning rate η ("rate": scores are inner products
of gradients), 1 ("use": scores are changes of the loss a step), 1/T in a run of T steps ("run": scores are
responses to the weight of an example in the mean loss); "" if the scores have no units."""


saved(TableFingerprints)


@saved
@dataclass(frozen=True)
class GivenScores:
    """What simulators keep of attribution scores: the array [train, test] or [step, train, test], what its
    units are, of which examples it is, and after which steps of a run.
    """

    scores: Array
    weighing: str = ""
    scale: float = 1.0
    tables: TableFingerprints = field(default_factory=TableFingerprints)
    steps: Sequence[int] = ()


def portable_scores(scores: Any) -> Any:
    """Scores as arrays or ``GivenScores``, which can be saved; lists stay lists."""
    if scores is None or isinstance(scores, np.ndarray):
        return scores
    if isinstance(scores, list | tuple):
        return [portable_scores(one) for one in scores]
    array = getattr(scores, "scores", None)
    if array is None:
        return np.asarray(scores, np.float64)
    tables = getattr(scores, "tables", TableFingerprints())
    weighing, scale = getattr(scores, "weighing", ""), getattr(scores, "scale", 1.0)
    return GivenScores(np.asarray(array), weighing, scale, tables, list(getattr(scores, "steps", ())))


def check_scores(scores: Any, runs: RunSet) -> None:
    """Raises RunDataError if scores, one or several, are known to be of other examples than the runs."""
    for one in scores if isinstance(scores, list | tuple) else [scores]:
        tables = getattr(one, "tables", None)
        if tables is not None:
            tables.check(TableFingerprints.of(runs.train, runs.test), "these scores")


@register
class ScoresSimulator(Simulator):
    """Additive in given scores.

    Parameters
    ----------
    scores : [train, test], or anything with such an attribute ``scores``; positive lowers the loss. Of scores
        [step, train, test] whose attribute ``steps`` says after which steps of a run they were taken, a step
        adds those of the latest; without it, their mean. None: all zero, which is persistence.
        What they weigh (:data:`Weighing`) and their ``scale`` are taken from such attributes.
    calibrated : fit k on the training runs; otherwise k is the scores' own scale, and they must state what
        they weigh.

    Attributes
    ----------
    scores_ : float [step, train, test]. steps_ : int [step], from which step on each is used, the first
        from 0. scale_ : k. weighing_ : as used. rates_ : float [step], the mean learning rates of the
        training runs.
    """

    name: ClassVar[str] = "scores"
    fitted: ClassVar[tuple[str, ...]] = ("scores_", "steps_", "weighing_", "rates_", "scale_")

    def __init__(self, scores: Any = None, calibrated: bool = True) -> None:
        self.scores = scores
        self.calibrated = calibrated

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        check_scores(self.scores, train)
        shape = (len(train.train), len(train.test))
        scores = np.zeros(shape) if self.scores is None else getattr(self.scores, "scores", self.scores)
        given = np.array(scores, np.float64)
        if given.shape[-2:] != shape or given.ndim > 3 or not np.isfinite(given).all():
            raise ValueError(f"scores must be finite, [train, test] = {shape}, got {given.shape}")
        steps = list(getattr(self.scores, "steps", ()))
        self.scores_ = given if steps else given.reshape(-1, *shape).mean(0, keepdims=True)
        self.steps_ = np.array([0, *steps[1:]])
        self.weighing_ = getattr(self.scores, "weighing", "")
        if self.weighing_ not in get_args(Weighing):
            raise ValueError(f"weighing must be one of {get_args(Weighing)}, got {self.weighing_!r}")
        if not self.weighing_ and not self.calibrated and self.scores is not None:
            raise ValueError(
                "these scores have no units, so that they predict nothing as they are: use calibrated=True,"
                " or InfluenceScores that state what a use weighs (weighing='rate', 'use' or 'run')"
            )
        self.rates_ = np.ones(1)
        if self.weighing_ == "rate":
            self.rates_ = mean_learning_rate(train.runs)
            if np.isnan(self.rates_).any():
                raise ValueError(
                    "scores in units of gradients need the learning rates of the runs, which do not log them:"
                    " give InfluenceScores with weighing='use', or scores in units of losses"
                )
        stated = float(getattr(self.scores, "scale", 1.0))
        self.scale_ = self._least_squares(train) if self.calibrated else stated

    def _least_squares(self, train: RunSet) -> float:
        product = square = 0.0
        for run in train:
            gained = self._gained(run.curriculum, self._usual_rates(len(run)))[np.asarray(run.evaluated)]
            change = run.loss - run.loss[0]
            known = np.isfinite(change)
            product += float((gained * np.where(known, change, 0.0)).sum())
            square += float((np.square(gained) * known).sum())
        return -product / square if square > 0 else 0.0

    def _usual_rates(self, steps: int) -> Array:
        return self.rates_[np.minimum(np.arange(steps), len(self.rates_) - 1)]

    def _gained(self, curriculum: Curriculum, weights: Array) -> Array:
        """P, float [step + 1, test]."""
        steps = len(curriculum)
        if self.weighing_ == "run":
            weights = weights / steps
        used = count_matrix([curriculum], batch_size=1.0)
        latest = np.searchsorted(self.steps_, np.arange(steps), side="right") - 1
        parts = [used[latest == number] @ scores for number, scores in enumerate(self.scores_)]
        each = np.concatenate(parts) * weights[:, None]
        return np.concatenate([np.zeros((1, each.shape[1])), np.cumsum(each, axis=0)])

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        steps = max(len(curriculum) for curriculum in curricula)
        rates = np.broadcast_to(self._usual_rates(steps), (len(curricula), steps))
        if learning_rate is not None and self.weighing_ == "rate":
            rates = as_schedule(learning_rate, len(curricula), steps)
        losses = np.full((len(curricula), steps + 1, initial_loss.shape[1]), np.nan)
        for run, curriculum in enumerate(curricula):
            gained = self._gained(curriculum, rates[run, : len(curriculum)])
            losses[run, : len(curriculum) + 1] = initial_loss[run] - self.scale_ * gained
        return losses

    def first_order(
        self,
        curriculum: Curriculum,
        initial_loss: Array,
        steps: npt.NDArray[np.int64],
        examples: npt.NDArray[np.int64],
        learning_rate: npt.ArrayLike | None = None,
    ) -> Array:
        """What one more use changes (:meth:`Simulator.first_order`), exactly, since scores add up."""
        weights = self._usual_rates(len(curriculum))
        if learning_rate is not None and self.weighing_ == "rate":
            weights = as_schedule(learning_rate, 1, len(curriculum))[0]
        if self.weighing_ == "run":
            weights = weights / len(curriculum)
        latest = np.searchsorted(self.steps_, steps, side="right") - 1
        share = self.scale_ * (weights / curriculum.consumed)[steps]
        return np.asarray(-share[:, None] * self.scores_[latest, examples], np.float64)

    def _portable_params(self) -> dict[str, Any]:
        return {**self.get_params(), "scores": portable_scores(self.scores)}
