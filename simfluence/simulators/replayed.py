"""Attribution scores as what a small model has learnt from, trained along every curriculum.

Added up (scored.py), scores say the same of an example's first use and of its tenth, and nothing of the
optimizer. Here they are the effects of a surrogate (surrogate.py), −B = S: all that is fitted to the training
runs are about 22 numbers that no example has to itself (a rate over time, the optimizer's memory, how much
what is known still teaches), so that what is predicted of a curriculum is what the scores know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from simfluence.curriculum import Curriculum
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator
from simfluence.simulators.design import record_on_grid
from simfluence.simulators.fitting import as_scores
from simfluence.simulators.memory import USUAL_MEMORY, recorded_memory, relative_rates
from simfluence.simulators.surrogate import Surrogate
from simfluence.simulators.surrogate_fit import fit_surrogate


class ReplayedSimulator(Simulator):
    """A surrogate whose effects are given scores.

    Parameters
    ----------
    scores : [train, test], or anything with such an attribute ``scores``; positive lowers the loss, any
        units. None: all zero, which is the mean trajectory of log(eᴸ − 1).
    max_rows : the grid of steps is thinned until there are about that many recorded losses a test example.

    Attributes
    ----------
    surrogate_rates_, surrogate_feedback_, surrogate_memory_, … : the fields of ``surrogate.Surrogate``.

    Raises
    ------
    ValueError : in ``fit``, for losses ≤ 0 (they have no log-odds), or scores of another shape or not finite.
    """

    name: ClassVar[str] = "replayed"

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
        beta, corrected = recorded_memory(train) or (USUAL_MEMORY, True)
        surrogate = fit_surrogate(
            -self.scores_,
            train.curricula,
            recorded.losses,
            recorded.grid,
            memory=beta,
            corrected=corrected,
            rates=relative_rates(train),
            changing=True,
        )
        for name, value in {**surrogate.arrays(), **surrogate.plain()}.items():
            setattr(self, f"surrogate_{name}_", value)

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        return self._surrogate().simulate(curricula)

    def _surrogate(self) -> Surrogate:
        prefix = "surrogate_"
        fields = {key[len(prefix) : -1]: value for key, value in vars(self).items() if key.startswith(prefix)}
        return Surrogate(**fields)

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments; scores are kept with the fitted values and left out here."""
        return {**super().get_params(), "scores": None}

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> Self:
        super()._restore(arrays, plain)
        self._surrogate()  # TypeError where fields are missing
        self.scores = self.scores_  # so that a loaded simulator can be fitted again
        return self
