"""The linearised model, and the losses that it predicts of a curriculum.

The loss of an example is L = −log p. Its log-odds of being *right* are

    f = log(p/(1 − p)) = −log(eᴸ − 1),        L = log(1 + e⁻ᶠ),        1 − p = 1/(1 + eᶠ)

which is minus ``simfluence.links.log_odds``, the log-odds of being wrong. In a wide network f is nearly
linear in the weights θ. ° marks the weights before training:

    f_e(θ) = f°_e + Σ_k ω_k J_{e,k} (θ_k − θ°_k),        J = ∂f/∂θ = −∇L/(1 − p)

The gradient of the mean loss of a batch c_t follows from f, and the optimizer's rule (update.py) moves θ:

    gradient_k(t) = −mean_{i ∈ c_t} (1 − p_i(t)) J_{i,k}

SGD and Adam treat each weight by itself. So a random sample of the weights is enough, each counted
ω = 1/(the probability that it was drawn) times. Nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from linearised.update import Update
from simfluence.curriculum import Curriculum
from simfluence.links import log_odds

Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]

_LOSS_FLOOR = 1e-6  # the log-odds of smaller losses are lost to rounding


def log_odds_right(losses: npt.ArrayLike) -> FloatArray:
    """f = −log(eᴸ − 1), of any shape; losses below 1e-6 count as 1e-6."""
    return -log_odds(losses, _LOSS_FLOOR).astype(np.float32)


@dataclass(frozen=True, eq=False)
class LinearisedModel:
    """Jacobians of the log-odds f, on a sample of the weights.

    train_jacobian, test_jacobian : J [example, weight], of the training and of the test examples.
    train_log_odds : f° [train]. (Those of test examples are found from the losses before the first step.)
    weights : θ° [weight]. counts : ω [weight].
    """

    train_jacobian: FloatArray
    test_jacobian: FloatArray
    train_log_odds: FloatArray
    weights: FloatArray
    counts: FloatArray

    @torch.no_grad()
    def simulate(
        self, curricula: Sequence[Curriculum], initial_loss: npt.ArrayLike, update: Update, rates: Array
    ) -> Array:
        """Losses of the test examples, float64 [run, step + 1, test]; those after a run's end mean nothing.

        initial_loss : [run, test], before the first step. rates : learning rates [run, step].
        """
        train, test = torch.from_numpy(self.train_jacobian), torch.from_numpy(self.test_jacobian)
        start, counts = torch.from_numpy(self.weights), torch.from_numpy(self.counts)
        train_start = torch.from_numpy(self.train_log_odds)
        test_start = torch.from_numpy(log_odds_right(initial_loss))
        weights = start.repeat(len(curricula), 1)
        averages = torch.zeros_like(weights), torch.zeros_like(weights)
        steps = max(len(curriculum) for curriculum in curricula)
        losses = np.empty((len(curricula), steps + 1, len(test)))
        for t in range(steps + 1):
            moved = (weights - start) * counts
            losses[:, t] = np.logaddexp(0.0, -(test_start + moved @ test.T).double().numpy())
            if t < steps:
                wrong = torch.sigmoid(-(train_start + moved @ train.T))  # 1 − p [run, train]
                shares = torch.from_numpy(np.stack([_shares(curriculum, t) for curriculum in curricula]))
                rate = torch.tensor(rates[:, [t]], dtype=torch.float32)
                update(weights, -(shares * wrong) @ train, averages, rate, t + 1)
        return losses


def _shares(curriculum: Curriculum, step: int) -> FloatArray:
    """The share of each training example in the mean loss of a batch [train]; 0 after the last step."""
    if step >= len(curriculum):
        return np.zeros(curriculum.n_examples, np.float32)
    batch = curriculum[step]
    counts = np.bincount(batch, minlength=curriculum.n_examples)
    return (counts / max(len(batch), 1)).astype(np.float32)
