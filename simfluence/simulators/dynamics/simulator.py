"""Attribution scores as what a small model has learnt from, trained along every curriculum.

Added up (scored.py), scores say the same of an example's first use and of its tenth, and nothing of the
optimizer. Here they are the effects of a dynamics (dynamics.py), −B = S: all that is fitted to the training
runs are about 22 numbers that no example has to itself (a rate over time, the optimizer's momentum, how much
what is known still teaches), so that what is predicted of a curriculum is what the scores know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from simfluence.curriculum import Curriculum
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator
from simfluence.simulators.dynamics.fit import fit_dynamics
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.effects.fitting import as_scores
from simfluence.simulators.effects.grid import record_on_grid
from simfluence.simulators.effects.momentum import USUAL_MOMENTUM, recorded_momentum, relative_rates


class DynamicsSimulator(Simulator):
    """A dynamics whose effects are given scores.

    Parameters
    ----------
    scores : [train, test], or anything with such an attribute ``scores``; positive lowers the loss, any
        units. None: all zero, which is the mean trajectory of log(eᴸ − 1).
    max_rows : the grid of steps is thinned until there are about that many recorded losses a test example.

    Attributes
    ----------
    dynamics_rates_, dynamics_feedback_, dynamics_memory_, … : the fields of ``dynamics.TrainingDynamics``.

    Raises
    ------
    ValueError : in ``fit``, for losses ≤ 0 (they have no log-odds), or scores of another shape or not finite.
    """

    name: ClassVar[str] = "dynamics"

    def __init__(self, scores: Any = None, max_rows: int = 4000) -> None:
        self.scores = scores
        self.max_rows = max_rows

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        shape = (self.n_train_, self.n_test_)
        given = as_scores(self.scores, shape)
        if len(given) > 1:
            raise ValueError(f"scores must be one array [train, test] = {shape}, got {len(given)}")
        self.scores_ = given[0] if len(given) else np.zeros(shape)
        recorded = record_on_grid(train, self.max_rows)
        if (least := min(float(losses.min()) for losses in recorded.losses)) <= 0:
            raise ValueError(
                f"log(eᴸ − 1) takes losses above 0, but one of {least:.3g} was recorded; 'scored' takes any"
            )
        beta, corrected = recorded_momentum(train) or (USUAL_MOMENTUM, True)
        dynamics = fit_dynamics(
            -self.scores_,
            train.curricula,
            recorded.losses,
            recorded.grid,
            momentum=beta,
            corrected=corrected,
            rates=relative_rates(train),
            changing=True,
        )
        for name, value in {**dynamics.arrays(), **dynamics.plain()}.items():
            setattr(self, f"dynamics_{name}_", value)

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        return self._dynamics().simulate(curricula)

    def _dynamics(self) -> TrainingDynamics:
        prefix = "dynamics_"
        fields = {key[len(prefix) : -1]: value for key, value in vars(self).items() if key.startswith(prefix)}
        return TrainingDynamics(**fields)

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments; scores are kept with the fitted values and left out here."""
        return {**super().get_params(), "scores": None}

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> Self:
        super()._restore(arrays, plain)
        self._dynamics()  # TypeError where fields are missing
        self.scores = self.scores_  # so that a loaded simulator can be fitted again
        return self
