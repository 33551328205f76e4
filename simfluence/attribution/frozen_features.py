"""Frozen features of examples, from which a simulator can predict the effects of unseen examples.

    text        pooled hidden states of the model before training, as a sentence encoder gives them:
                [h, h − mean over the options] of the right option of a choice, h ⊗ [1, 1(y) − 1/C] for
                one of C classes; both parts scaled to the same mean square
    gradients   a sketch of ∇L(i; θ₀): every parameter is added, with a random sign, to a random one of
                ``size`` places (count sketch), so that ⟨sketch_i, sketch_z⟩ = ⟨∇_i, ∇_z⟩ in expectation,
                with a standard deviation of at most √(2 / size) ‖∇_i‖ ‖∇_z‖

Sketched gradients can first be divided by v^¼, v the mean square of the training examples' gradients:
inner products are then ∇_zᵀ diag(v)^(−½) ∇_i, what a step of Adam on i does to z.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from simfluence.attribution.gradients import example_gradients
from simfluence.attribution.objective import Losses, LossesOnly
from simfluence.recording.evaluator import undisturbed

Array = npt.NDArray[np.float64]


def text_features(model: Any, examples: Sequence[Any]) -> Array:
    """Pooled hidden states of a ``TextClassifier`` as it is now, float [example, 2 × hidden or more]."""
    parts: list[list[Tensor]] = [[], []]
    with undisturbed(model), torch.no_grad():
        for example in examples:
            pooled = model.pooled([example])  # [option, hidden]
            if model.n_outputs == 1:
                parts[0].append(pooled[example.label])
                parts[1].append(pooled[example.label] - pooled.mean(0))
            else:
                label = torch.eye(model.n_outputs)[example.label] - 1 / model.n_outputs
                parts[0].append(pooled[0])
                parts[1].append(torch.outer(label, pooled[0].cpu()).flatten())
    arrays = [torch.stack(part).cpu().numpy().astype(np.float64) for part in parts]
    return np.concatenate([array / np.sqrt(np.square(array).sum(1).mean()) for array in arrays], axis=1)


def gradient_features(
    model: nn.Module,
    losses: Losses,
    examples: Sequence[Any],
    *,
    size: int = 2**14,
    seed: int = 0,
    scale: Tensor | None = None,
) -> Array:
    """Sketches of the gradients of single examples' losses, float [example, size], in eval mode.

    Parameters
    ----------
    losses : see :data:`.objective.Losses`.
    scale : float [parameter]; gradients are multiplied by it before they are sketched.
    """
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rng = torch.Generator().manual_seed(seed)
    place = torch.randint(size, (count,), generator=rng)
    sign = torch.randint(2, (count,), generator=rng, dtype=torch.float32) * 2 - 1
    if scale is not None:
        sign = sign * scale.cpu()
    sketches = [
        torch.zeros(size).index_add_(0, place, gradient * sign)
        for gradient in _gradients(model, losses, examples)
    ]
    return torch.stack(sketches).numpy().astype(np.float64)


def adam_scale(model: nn.Module, losses: Losses, examples: Sequence[Any]) -> Tensor:
    """v^(−¼), float [parameter]; v the mean square of the examples' gradients; 0 where it is 0."""
    squares: Tensor | None = None
    for gradient in _gradients(model, losses, examples):
        squares = gradient.square() if squares is None else squares.add_(gradient.square())
    assert squares is not None
    squares /= len(examples)
    return torch.where(squares > 0, squares.clamp_min(torch.finfo(torch.float32).tiny) ** -0.25, 0.0)


def _gradients(model: nn.Module, losses: Losses, examples: Sequence[Any]) -> Iterator[Tensor]:
    """float32 [parameter], one example after the other."""
    for batch in example_gradients(LossesOnly(model, losses), examples, batch_size=1):
        yield batch[0].float().cpu()
