"""The gradient of each example's loss, and inner products of these gradients as scores.

    dot      ⟨∇L(i; θ), ∇L(z; θ)⟩          units loss² / parameter²
    cosine   the same, each gradient divided by its length     no units

To first order, a step of gradient descent on i alone changes the loss of z by −η times the dot product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from simfluence.attribution.gradient_parts import dense, scaled
from simfluence.attribution.layers import wide_type
from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import share_of_trained
from simfluence.attribution.products import Queries, held, scores, self_products
from simfluence.attribution.registry import AttributionContext, method
from simfluence.attribution.tracing import Traced, Tracer, tracer
from simfluence.recording.wrappers import plain_name
from simfluence.scores import InfluenceScores


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
    for _, gradients in losses_and_gradients(objective, examples, parameters, batch_size):
        yield gradients


def losses_and_gradients(
    objective: Objective,
    examples: Sequence[Any],
    parameters: Sequence[str] | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`example_gradients`; each batch is (losses [example in batch], gradients)."""
    with tracer(objective, examples, parameters) as trace:
        for batch in trace.batches(examples, batch_size):
            traced = trace(batch)
            yield traced.losses.detach(), flat(trace, traced)


def gradient_similarity(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    similarity: Literal["dot", "cosine"] = "dot",
    rates: Mapping[str, float] | None = None,
    parameters: Sequence[str] | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> InfluenceScores:
    """Similarity of gradients, in eval mode.

    rates : of dot products, a factor for the part of each parameter, by name (0 for those not named): the
        learning rates of a run whose parameters have different ones. None: 1 for all.
    parameters : see :func:`.parameters.selected_parameters`; None: all that require gradients.
    batch_size : examples in a pass; the scores do not depend on it.

    Raises ValueError if the model has nothing to train, or there are no examples.
    """
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity must be 'dot' or 'cosine', got {similarity!r}")
    if rates is not None and similarity == "cosine":
        raise ValueError("cosines are of whole gradients: rates go with similarity='dot'")
    if not len(train) or not len(test):
        raise ValueError(f"expected examples, got {len(train)} for training and {len(test)} to test")
    with tracer(objective, [train[0], test[0]], parameters) as trace:
        queries, lengths = gradients_held(trace, test, batch_size)
        if rates is not None:
            queries = {
                name: [scaled(part, rates[plain_name(name)]) for part in parts]
                for name, parts in queries.items()
                if rates.get(plain_name(name), 0.0) != 0
            }
        found = []
        for batch in followed(trace.batches(train, batch_size), len(train), progress):
            traced = trace(batch)
            products = scores(queries, traced, len(test))
            found.append(products / squared_lengths(traced).sqrt() if similarity == "cosine" else products)
    array = torch.cat(found) / lengths.sqrt() if similarity == "cosine" else torch.cat(found)
    return InfluenceScores(
        array.cpu().numpy(),
        method=f"gradient_{similarity}",
        units="loss² / parameter²" if similarity == "dot" else "",
        covers=tuple(trace.parameters),
        provenance=trace.about,
        weighing="rate" if similarity == "dot" else "",
        coverage=share_of_trained(objective.module, trace.parameters),
    )


@method("gradient_dot")
def _dot_in_context(context: AttributionContext, **options: Any) -> InfluenceScores:
    return context.at_last_checkpoint(gradient_similarity, **options, similarity="dot")


@method("gradient_cosine")
def _cosine_in_context(context: AttributionContext, **options: Any) -> InfluenceScores:
    return context.at_last_checkpoint(gradient_similarity, **options, similarity="cosine")


def gradients_held(trace: Tracer, test: Sequence[Any], batch_size: int) -> tuple[Queries, Tensor]:
    """Gradients of test examples, prepared for inner products, and their squared lengths [test]."""
    batches, lengths = [], []
    for batch in trace.batches(test, batch_size):
        batches.append(trace(batch))
        lengths.append(squared_lengths(batches[-1]))
    return held(batches), torch.cat(lengths)[:, 0]


def followed(
    batches: Iterable[Sequence[Any]], total: int, progress: bool, what: str = "gradients"
) -> Iterator[Sequence[Any]]:
    """The batches, with a bar that counts their examples."""
    with tqdm(total=total, desc=what, disable=not progress, unit="example") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def squared_lengths(traced: Traced) -> Tensor:
    """‖∇L(i)‖² [example, 1], at least the smallest positive number, so that one can divide by it."""
    losses = traced.losses
    total = torch.zeros(len(losses), 1, dtype=wide_type(losses), device=losses.device)
    for parts in traced.parts.values():
        total = total + self_products(parts)[:, None]
    return total.clamp_min(torch.finfo(total.dtype).tiny)


def flat(trace: Tracer, traced: Traced) -> Tensor:
    """[example, parameter]; zeros for parameters that the losses do not depend on."""
    examples = len(traced.losses)
    parts = []
    for name, parameter in trace.parameters.items():
        if name in traced.parts:
            parts.append(dense(traced.parts[name]).reshape(examples, -1))
        else:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            parts.append(torch.zeros(examples, parameter.numel(), dtype=wide, device=parameter.device))
    return torch.cat(parts, 1)
