"""Training dynamics in function space: a small kernel model that is trained along every curriculum.

Effects B (or attribution scores S = −B) are how much one use of training example i moves test example z, on
average. They do not tell how that changes once i, or examples like it, have been learnt: returns diminish. A
model whose gradients have inner products like the effects, that is, with the kernel (empirical NTK) −B, does.
Factor

    −B_iz ∝ ⟨u_i, v_z⟩,     u = P Σ^{½+q},  v = Q Σ^{½+q}                    from −B = P Σ Qᵀ

and train two linear layers, w ∈ ℝᵏ and a gain a, by the optimizer's rule. With f_i = f_0 + κ a ⟨u_i, w⟩ the
log-odds of training example i being right,

    g_t = 1/|c_t| Σ_{i ∈ c_t} ρ_i u_i,     ρ_i = σ(−f_i) / σ(−f_0)      the residual: what is left to learn
    m_t = β m_{t-1} + (1 − β) g_t,         w_t = α_t w_{t-1} + γ_t a_{t-1} m_t / (1 − βᵗ)
    n_t = β n_{t-1} + (1 − β) ⟨w_{t-1}, g_t⟩,      a_t = a_{t-1} + η n_t / (1 − βᵗ),        a_0 = 1, w_0 = 0
    log(e^{L_t(z)} − 1) = mean over the training runs + ⟨v_z, x̄_t − x_t⟩,                    x = a w

(−log σ(f) has the derivative −σ(−f)). Where training hardly changes the kernel, α = 1 and η = 0; where it
does, directions turn away (α < 1) and what was learnt first is learnt faster (η > 0). q < 0 makes directions
more alike, as an optimizer that divides by the size of gradients does. fit.py fits γ, α, κ, β, η and q;
cross_fit.py the effects.

In the code w = Σ^q y, so that u and v keep the power ½ and the metric Σ^{2q} stands between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.kernels.arguments import Batches, Dynamics, Parameters
from simfluence.links import unlink
from simfluence.simulators.effects.momentum import Momentum
from simfluence.simulators.state import saved

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def batches_of(curricula: Sequence[Curriculum]) -> Batches:
    """The curricula one after the other, as the compiled loops take them."""
    sizes = np.concatenate([curriculum.batch_sizes for curriculum in curricula])
    return Batches(
        np.concatenate([curriculum.examples for curriculum in curricula]),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.array([len(curriculum) for curriculum in curricula]),
    )


@saved
@dataclass(frozen=True)
class TrainingDynamics:
    """A fitted kernel model, and the mean trajectory of the runs that it was fitted to.

    train, test : u [train, k], v [test, k], with the power ½. metric : Σ^{2q} [k].
    profile : γ over the relative learning rate [step]. kept : α [step]. The last of both goes on.
    momentum : β, and whether 1 − βᵗ divides. feedback : κ. growth : η. start : f_0.
    average : of the training runs, mean log(eᴸ − 1) + ⟨v_z, x_t⟩, [step + 1, test]. usual : their mean γ.
    """

    train: Array
    test: Array
    metric: Array
    profile: Array
    kept: Array
    momentum: Momentum
    feedback: float
    growth: float
    start: float
    average: Array
    usual: float

    def simulate(self, curricula: Sequence[Curriculum], rates: Array, shift: Array | float = 0.0) -> Array:
        """Losses [run, step + 1, test].

        rates : relative learning rates [run, step].
        shift : what log(eᴸ − 1) differs by from the training runs' mean before the first step, [run, test].
        """
        steps = max(len(curriculum) for curriculum in curricula)
        changed = self.changed(batches_of(curricula), np.arange(steps + 1), rates)
        step = np.minimum(np.arange(steps + 1), len(self.average) - 1)
        shift = np.asarray(shift, np.float64)
        return unlink(self.average[step] + changed + (shift[:, None] if shift.ndim else shift), "log_odds")

    def changed(self, batches: Batches, points: IntArray, rates: Array) -> Array:
        """What training has added to log(eᴸ − 1) after the steps ``points``, [run, point, test]."""
        return self.on_test(self.train_along(batches, points, rates)[0])

    def on_test(self, states: Array) -> Array:
        """What states x [..., k] have added to log(eᴸ − 1), [..., test]."""
        return np.asarray(states @ self.on_state().T, np.float64)

    def on_state(self) -> Array:
        """The derivative of log(eᴸ − 1) of every test example by the state x, [test, k]."""
        return np.asarray(-self.test * self.metric, np.float64)

    def use_weights(self, curricula: Sequence[Curriculum], rates: Array) -> list[Array]:
        """ρ_i γ_t over the training runs' mean of γ: what each use still teaches, one [use] a curriculum."""
        batches = batches_of(curricula)
        residuals = self.train_along(batches, np.empty(0, np.int64), rates)[2]
        gamma = self.gamma(rates)
        reached = np.arange(gamma.shape[1]) < batches.lengths[:, None]
        weights = residuals * np.repeat(gamma[reached] / self.usual, np.diff(batches.bounds))
        ends = np.cumsum([len(curriculum.examples) for curriculum in curricula])
        return np.split(weights, ends[:-1])

    def mean_gamma(self, curricula: Sequence[Curriculum], rates: Array) -> float:
        """The mean of γ over the steps of these curricula."""
        gamma = self.gamma(rates)
        lengths = np.array([len(curriculum) for curriculum in curricula])
        return float(gamma[np.arange(gamma.shape[1]) < lengths[:, None]].mean())

    def train_along(
        self, batches: Batches, points: IntArray, rates: Array, parameters: Parameters | None = None
    ) -> tuple[Array, Array, Array]:
        """(x [run, point, k], its derivatives [parameter, run, point, k], ρ [use])"""
        from simfluence.kernels.dynamics import train  # compiled when first used

        dynamics = Dynamics(
            self.train,
            self.metric,
            np.ascontiguousarray(self.gamma(rates)),
            self.kept,
            float(self.momentum.beta),
            self.momentum.bias_correction,
            float(self.feedback),
            float(self.growth),
            float(self.start),
        )
        none = Parameters(np.zeros(0), np.zeros((1, 0)), np.zeros((1, 0)), np.empty(0, np.int64))
        found: tuple[Array, Array, Array] = train(batches, dynamics, parameters or none, points)
        return found

    def gamma(self, rates: Array) -> Array:
        """γ at relative learning rates [run, step]."""
        return rates * self.profile[np.minimum(np.arange(rates.shape[1]), len(self.profile) - 1)]
