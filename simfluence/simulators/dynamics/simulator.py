"""Attribution scores as the kernel of training dynamics.

Added up (scores.py), scores predict the same of an example's first use and of its tenth, and know nothing of
the optimizer. As the kernel of training dynamics (model.py), −B = S, they give diminishing returns and
momentum. All that is fitted to the training runs are about 22 numbers, none of which belongs to a single
example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.links import link, slope
from simfluence.runs import RunSet
from simfluence.runs.schedule import RelativeRates
from simfluence.simulators.base import Array, Simulator, register
from simfluence.simulators.dynamics.adjoint import pull_back
from simfluence.simulators.dynamics.kernels import fit_scores
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.effects.data import TrainingData, as_scores
from simfluence.simulators.scores import check_scores, portable_scores


@register
class DynamicsSimulator(Simulator):
    """Training dynamics whose kernel is given.

    Parameters
    ----------
    scores : [train, test], or anything with such an attribute ``scores``; positive lowers the loss, any
        units. Several arrays, taken at several steps of a run, give the kernel that explains the runs best
        (kernels.py). None is all zero: the mean trajectory of log(eᴸ − 1).
    max_rows : the grid of steps is thinned until there are about that many recorded losses a test example.

    Attributes
    ----------
    dynamics_ : the fitted ``TrainingDynamics``. initial_ : mean log(eᴸ − 1) before the first step [test].

    Raises
    ------
    ValueError : in ``fit``, for losses ≤ 0, which have no log-odds, or scores of another shape or not finite.
    """

    name: ClassVar[str] = "dynamics"
    fitted: ClassVar[tuple[str, ...]] = ("dynamics_", "initial_", "rates_")

    def __init__(self, scores: Any = None, max_rows: int = 2000) -> None:
        self.scores = scores
        self.max_rows = max_rows

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        check_scores(self.scores, train)
        shape = (len(train.train), len(train.test))
        given = as_scores(self.scores, shape)
        data = TrainingData(train, given, self.max_rows)
        if not data.has_log_odds:
            least = min(float(losses.min()) for losses in data.recorded.losses)
            raise ValueError(
                f"log(eᴸ − 1) takes losses above 0, but one of {least:.3g} was recorded; 'scores' takes any"
            )
        self.set_dynamics(fit_scores(given, data)[0].dynamics, data)

    def set_dynamics(self, dynamics: TrainingDynamics, data: TrainingData) -> None:
        """Take dynamics that were fitted to these runs."""
        self.dynamics_, self.rates_ = dynamics, data.rates
        self.initial_ = np.mean([levels[0] for levels in data.levels("log_odds")], axis=0)

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        steps = max(len(curriculum) for curriculum in curricula)
        rates: RelativeRates = self.rates_
        shift = link(initial_loss, "log_odds") - self.initial_
        return self.dynamics_.simulate(curricula, rates.at(len(curricula), steps, learning_rate), shift)

    def first_order(
        self,
        curriculum: Curriculum,
        initial_loss: Array,
        steps: npt.NDArray[np.int64],
        examples: npt.NDArray[np.int64],
        learning_rate: npt.ArrayLike | None = None,
    ) -> Array:
        """What one more use changes to first order (:meth:`Simulator.first_order`), by adjoint.py."""
        last = self.simulate([curriculum], initial_loss, learning_rate)[0, -1]
        gammas = self.dynamics_.gamma(self.rates_.at(1, len(curriculum), learning_rate))[0]
        found = pull_back(
            self.dynamics_, curriculum, gammas, self.dynamics_.on_state(), None, (steps, examples), None
        )
        return found * slope(last, "log_odds")

    def _portable_params(self) -> dict[str, Any]:
        return {**self.get_params(), "scores": portable_scores(self.scores)}
