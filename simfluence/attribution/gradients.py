"""Gradients of single examples' losses, and the simplest scores made of them.

    dot      ⟨∇L(i; θ), ∇L(z; θ)⟩          units loss² / parameter²
    cosine   the same of unit gradients     no units

To first order, a step of gradient descent on i alone changes the loss of z by −η times the dot product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from simfluence.attribution.objective import Objective
from simfluence.attribution.pieces import dense
from simfluence.attribution.scores import InfluenceScores
from simfluence.attribution.tracing import Traced, Tracer, tracer


def example_gradients(
    objective: Objective,
    examples: Sequence[Any],
    *,
    parameters: Sequence[str] | None = None,
    batch_size: int = 8,
) -> Iterator[Tensor]:
    """The gradient of every example's loss, batch after batch [example in batch, parameter].

    Flat, in the order of :func:`.parameters.selected_parameters`; float32 at least; in eval mode. The
    sizes of the batches change the time that it takes, and nothing else.

    Raises ValueError if there is nothing to differentiate with respect to.
    """
    with tracer(objective, examples, parameters) as trace:
        for batch in trace.batches(examples, batch_size):
            yield _flat(trace, trace(batch))


def gradient_similarity(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    similarity: Literal["dot", "cosine"] = "dot",
    parameters: Sequence[str] | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> InfluenceScores:
    """Similarity of gradients, in eval mode.

    parameters : see :func:`.parameters.selected_parameters`; None: all that require gradients.
    batch_size : examples in a pass; the scores do not depend on it.

    Raises ValueError if the model has nothing to train.
    """
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity must be 'dot' or 'cosine', got {similarity!r}")
    chosen = {"parameters": parameters, "batch_size": batch_size}
    of_tests = torch.cat(list(example_gradients(objective, test, **chosen)))  # type: ignore[arg-type]
    parts = []
    with tqdm(total=len(train), desc="gradients", disable=not progress, unit="example") as bar:
        for gradients in example_gradients(objective, train, **chosen):  # type: ignore[arg-type]
            parts.append(gradients @ of_tests.T / _norm(gradients, similarity))
            bar.update(len(gradients))
    scores = torch.cat(parts) / _norm(of_tests, similarity).T
    with tracer(objective, (), parameters) as trace:
        covers = tuple(trace.parameters)
    return InfluenceScores(
        scores.cpu().numpy(),
        method=f"gradient_{similarity}",
        units="loss² / parameter²" if similarity == "dot" else "",
        covers=covers,
        weighing="rate" if similarity == "dot" else "",
    )


def _flat(trace: Tracer, traced: Traced) -> Tensor:
    """[example, parameter]; zeros for what had no part in the losses."""
    examples = len(traced.losses)
    parts = []
    for name, parameter in trace.parameters.items():
        if name in traced.pieces:
            parts.append(dense(traced.pieces[name]).reshape(examples, -1))
        else:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            parts.append(torch.zeros(examples, parameter.numel(), dtype=wide, device=parameter.device))
    return torch.cat(parts, 1)


def _norm(gradients: Tensor, similarity: str) -> Tensor:
    """[example, 1]; ones for dot products."""
    if similarity == "dot":
        return gradients.new_ones(len(gradients), 1)
    return gradients.norm(dim=1, keepdim=True).clamp_min(torch.finfo(gradients.dtype).tiny)
