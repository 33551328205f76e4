"""A small stand-in for the model, trained along every curriculum.

Effects say how much a use of training example i moves test example z, on average. They do not say what
becomes of that when i, or others like it, were used before: what is known teaches less. A model whose
gradients have inner products like the effects does say it. Factor the effects on log-odds,

    −B_iz ∝ ⟨u_i, v_z⟩,     U = P Σ^{½+q},  V = Q Σ^{½+q}                  from −B = P Σ Qᵀ, its whole rank

and train two linear layers, w ∈ ℝᵏ and a gain a, by the optimizer's rule, where f_i = f_0 + κ ⟨u_i, x⟩ with
x = a w are the log-odds of i being right:

    g_t = 1/|c_t| Σ_{i ∈ c_t} ρ_i u_i,     ρ_i = σ(−f_i) / σ(−f_0)                   what i still teaches
    m_t = β m_{t-1} + (1 − β) g_t,         w_t = α_t w_{t-1} + γ_t a_{t-1} m_t / (1 − βᵗ)
    n_t = β n_{t-1} + (1 − β) ⟨w_{t-1}, g_t⟩,      a_t = a_{t-1} + η n_t / (1 − βᵗ),     a_0 = 1, w_0 = 0
    log(e^{L_t(z)} − 1) = mean over the training runs + ⟨v_z, x̄_t − x_t⟩

(the gradient of −log σ(f) is −σ(−f) ∇f). Where training changes the kernel little, α = 1 and η = 0; at high
rates directions round_ away (α) and what was learnt first is learnt faster (η). q < 0 makes directions more
alike, as an optimizer that divides by the size of gradients does. dynamics_fit.py fits γ, α, κ, β, η and q,
alternation.py the effects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.simulators.effects.model import unlink

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainingDynamics:
    """A stand-in, and the mean trajectory of the runs that it was fitted to.

    Attributes
    ----------
    train, test : u [train, k], v [test, k].
    rates, kept : γ and α [step]; the last goes on.
    momentum, corrected : β, and whether 1 − βᵗ divides (momentum.py).
    feedback : κ. growth : η. power : q, which u and v have already. start : f_0.
    average : of the training runs, mean log(eᴸ − 1) + ⟨v_z, x_t⟩, [step + 1, test].
    """

    train: Array
    test: Array
    rates: Array
    kept: Array
    momentum: float
    corrected: bool
    feedback: float
    growth: float
    power: float
    start: float
    average: Array

    def simulate(self, curricula: Sequence[Curriculum], initial_loss: Array | None = None) -> Array:
        """Losses [run, step + 1, test], from the mean initial ones whatever ``initial_loss`` says."""
        steps = max(len(curriculum) for curriculum in curricula)
        moved = self.moved(Batches.of(curricula), np.arange(steps + 1))
        step = np.minimum(np.arange(steps + 1), len(self.average) - 1)
        return unlink(self.average[step] + moved, "log_odds")

    def moved(self, batches: Batches, points: IntArray) -> Array:
        """What training has changed log(eᴸ − 1) by after these steps, [run, point, test]."""
        return np.asarray(-self.replay(batches, points)[0] @ self.test.T, np.float64)

    def example_residuals(self, curricula: Sequence[Curriculum]) -> list[Array]:
        """ρ_i γ_t over the mean of γ of each use, one [use] a curriculum."""
        batches = Batches.of(curricula)
        left = self.replay(batches, np.empty(0, np.int64))[1]
        steps = np.concatenate([np.arange(length) for length in batches.lengths])
        relative = self.rates / self.rates.mean()
        rates = relative[np.minimum(steps, len(relative) - 1)]
        predicted_now = left * np.repeat(rates, np.diff(batches.bounds))
        ends = np.cumsum([len(curriculum.examples) for curriculum in curricula])
        return np.split(predicted_now, ends[:-1])

    def replay(self, batches: Batches, points: IntArray) -> tuple[Array, Array]:
        """(x [run, point, k] after the steps ``points``, ascending; ρ [use]).

        After a run's end, x is where it ended.
        """
        from simfluence.kernels.dynamics import replay  # compiled when first used

        places, left = replay(
            batches.indices,
            batches.bounds,
            batches.lengths,
            self.train,
            self.rates,
            self.kept,
            self.momentum,
            self.corrected,
            self.feedback,
            self.growth,
            self.start,
            points,
        )
        return places, left

    # ------------------------------------------------------------------------------ keeping it

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The fields that are arrays, by name."""
        return {name: getattr(self, name) for name in ("train", "test", "rates", "kept", "average")}

    def plain(self) -> dict[str, Any]:
        """The other fields, as JSON has them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if name not in self.arrays()}

    @classmethod
    def restored(cls, arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> TrainingDynamics:
        """From what ``arrays`` and ``plain`` gave."""
        return cls(**arrays, **plain)


@dataclass(frozen=True)
class Batches:
    """Curricula one after the other: example numbers, where each batch begins and ends, steps a run."""

    indices: IntArray
    bounds: IntArray
    lengths: IntArray

    @classmethod
    def of(cls, curricula: Sequence[Curriculum]) -> Batches:
        lengths = np.array([len(curriculum) for curriculum in curricula])
        sizes = np.concatenate([curriculum.batch_sizes for curriculum in curricula])
        indices = np.concatenate([curriculum.examples for curriculum in curricula])
        return cls(indices, np.concatenate([[0], np.cumsum(sizes)]), lengths)
