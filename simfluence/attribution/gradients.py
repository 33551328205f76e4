"""Gradients of single examples' losses, and the simplest scores made of them.

    dot      ⟨∇L(i; θ), ∇L(z; θ)⟩          units loss² / parameter²
    cosine   the same of unit gradients     no units

To first order, a step of gradient descent on i alone changes the loss of z by −η times the dot product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from simfluence.attribution.objective import Losses
from simfluence.attribution.scores import InfluenceScores
from simfluence.recording.evaluator import undisturbed


def gradient_similarity(
    model: nn.Module,
    losses: Losses,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    similarity: Literal["dot", "cosine"] = "dot",
    progress: bool = False,
) -> InfluenceScores:
    """Similarity of gradients with respect to all trainable parameters, in eval mode.

    All test gradients are held at once (float32, tests × parameters); training gradients pass by one at a
    time.

    Raises ValueError if the model has nothing to train.
    """
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity must be 'dot' or 'cosine', got {similarity!r}")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("the model has no parameter that requires gradients: nothing to attribute to")
    with undisturbed(model):
        of_tests = torch.stack(list(_gradients(model, losses, test)))
        columns = tqdm(
            _gradients(model, losses, train), "gradients", len(train), disable=not progress, unit="example"
        )
        scores = torch.stack([of_tests @ gradient / _norm(gradient, similarity) for gradient in columns])
    if similarity == "cosine":
        scores = scores / of_tests.norm(dim=1).clamp_min(torch.finfo(scores.dtype).tiny)
    return InfluenceScores(
        scores.cpu().numpy(),
        method=f"gradient_{similarity}",
        units="loss² / parameter²" if similarity == "dot" else "",
        covers=tuple(name for name, _ in named),
        weighing="rate" if similarity == "dot" else "",
    )


def _gradients(model: nn.Module, losses: Losses, examples: Sequence[Any]) -> Iterator[Tensor]:
    """The gradient of every example's loss, flat [parameter], float32 at least."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for example in examples:
        with torch.enable_grad():
            parts = torch.autograd.grad(losses([example])[0], parameters, materialize_grads=True)
        flat = torch.cat([part.flatten() for part in parts])
        yield flat.float() if flat.dtype.itemsize < 4 else flat


def _norm(gradient: Tensor, similarity: str) -> Tensor | float:
    return gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny) if similarity == "cosine" else 1.0
