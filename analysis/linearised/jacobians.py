"""Making a linearised model: the Jacobians of all examples' log-odds, on a sample of the weights.

About ``coordinates`` of the weights are drawn, weight k with the probability

    π_k = min(1, coordinates · (½ mean_i |∇_k L_i| / Σ_l mean_i |∇_l L_i| + ½ / #weights))

where the means are over some training examples i; a weight that was drawn counts 1/π_k times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linearised.model import FloatArray, LinearisedModel, log_odds_right
from simfluence.attribution.gradients import example_gradients, losses_and_gradients
from simfluence.attribution.objective import Losses, LossesOnly
from simfluence.finetuning.experiment import prepare
from simfluence.finetuning.retrain import recorded_config, recorded_device
from simfluence.runs import RunSet

_PILOTS = 32  # training examples whose gradients decide which weights are likely to be drawn


def linearise_runs(runs: RunSet, coordinates: int = 20_000, device: str | None = None) -> LinearisedModel:
    """The linearised model of runs that ``record_runs`` made, at their weights before training.

    device : where to take gradients, as torch names it; None is where the first run was trained.
    Raises what ``prepare`` does if the task or the model of the runs is not found.
    """
    made = prepare(recorded_config(runs[0]), device or str(recorded_device(runs[0])))
    made.model.load_state_dict(made.initial)
    return linearise(made.model, made.model.losses, made.task.train, made.task.test, coordinates)


def linearise(
    model: nn.Module,
    losses: Losses,
    train: Sequence[Any],
    test: Sequence[Any],
    coordinates: int = 20_000,
    seed: int = 0,
) -> LinearisedModel:
    """The linearised model at the weights that the model has now, one gradient an example, in eval mode.

    Memory: 4 bytes × examples × coordinates.

    losses : examples → −log p of each [example], > 0. coordinates : about how many weights to draw.
    Raises ValueError if the model has nothing to train, or a loss is not that of a probability.
    """
    objective = LossesOnly(model, losses)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires gradients: there is nothing to linearise")
    chosen, probability = _draw(objective, train, coordinates, seed)
    train_jacobian, train_log_odds = _jacobian(objective, train, chosen)
    test_jacobian, _ = _jacobian(objective, test, chosen)
    weights = torch.cat([parameter.detach().flatten().float().cpu() for parameter in trained])
    return LinearisedModel(
        train_jacobian=train_jacobian,
        test_jacobian=test_jacobian,
        train_log_odds=train_log_odds,
        weights=weights[chosen].numpy(),
        counts=(1 / probability).numpy(),
    )


def _draw(objective: LossesOnly, train: Sequence[Any], coordinates: int, seed: int) -> tuple[Tensor, Tensor]:
    """(which weights are drawn, their probabilities π)"""
    rows = np.unique(np.linspace(0, len(train) - 1, _PILOTS).astype(int))
    pilots = example_gradients(objective, [train[row] for row in rows], batch_size=1)
    sizes = torch.cat([gradient.float().abs().cpu() for gradient in pilots]).mean(0)
    share = 0.5 * sizes / sizes.sum().clamp_min(torch.finfo(sizes.dtype).tiny) + 0.5 / len(sizes)
    probability = (coordinates * share).clamp_max(1.0)
    drawn = torch.rand(len(sizes), generator=torch.Generator().manual_seed(seed)) < probability
    chosen = drawn.nonzero()[:, 0]
    return chosen, probability[chosen]


def _jacobian(
    objective: LossesOnly, examples: Sequence[Any], chosen: Tensor
) -> tuple[FloatArray, FloatArray]:
    """(J [example, weight], f [example])"""
    jacobian, losses = np.empty((len(examples), len(chosen)), np.float32), np.empty(len(examples))
    found = losses_and_gradients(objective, examples, batch_size=1)
    for row, (loss, gradient) in enumerate(found):
        losses[row] = float(loss[0])
        if not losses[row] > 0:
            raise ValueError(
                f"expected losses −log p, which are > 0; that of example {row} is {losses[row]:g}"
            )
        jacobian[row] = (gradient[0].float().cpu()[chosen] / np.expm1(-losses[row])).numpy()
    return jacobian, log_odds_right(losses)
