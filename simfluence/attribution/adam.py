"""Inner products of gradients in Adam's metric: what a step of Adam on i takes off the loss of z.

    S(i, z) = Σ_c ∇_c L(i; θ) ∇_c L(z; θ) / (√v_c + ε),      v_c = m_c² + s_c² / b

Adam divides each weight's step by the size of the gradients that it has seen there. v is that size squared
for batches of b examples drawn at random from those that are trained on, m and s² being the mean and the
variance of their ∇_c L(i; θ). To first order, a step with learning rate η on a batch of b examples changes
the loss of z by −η/b times the sum of their scores (momentum spreads that over steps). Units: loss /
parameter. After Xia et al. 2024 (arXiv 2402.04333, influence under Adam), who take v from the optimizer's
state and momentum into the gradient of i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simfluence.attribution.gradient_parts import GradientPart, Summed, dense
from simfluence.attribution.gradients import followed
from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import share_of_trained
from simfluence.attribution.products import Queries, scores
from simfluence.attribution.registry import AttributionContext, method
from simfluence.attribution.tracing import Traced, Tracer, tracer
from simfluence.recording.wrappers import plain_name
from simfluence.scores import InfluenceScores

HELD_NUMBERS = 2**28  # at most so many numbers of test gradients are in memory at once: 1 GB in float32
SUMMED_NUMBERS = 2**24  # and of a parameter's gradients that are summed up: 64 MB


def adam_similarity(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    batch: int,
    eps: float | Mapping[str, float] = 1e-8,
    rates: Mapping[str, float] | None = None,
    population: Sequence[Any] | None = None,
    parameters: Sequence[str] | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> InfluenceScores:
    """Inner products of gradients in Adam's metric, in eval mode.

    Parameters
    ----------
    batch : b, the number of examples in a training step.
    eps : ε of Adam; of each parameter, by name, where they have different ones. The parts of parameters
        that are not named are plain inner products, as where SGD trains some and Adam the others.
    rates : as in :func:`.gradients.gradient_similarity`.
    population : the examples that batches are drawn from, if they are more than ``train``.
    parameters, batch_size : as in :func:`.gradients.gradient_similarity`.

    Raises ValueError if the model has nothing to train, there are no examples, or b < 1 or ε ≤ 0.
    """
    each_eps = list(eps.values()) if isinstance(eps, Mapping) else [eps]
    if not 1 <= batch < math.inf or not all(0 < value < math.inf for value in each_eps):
        raise ValueError(f"batch must be at least 1 and eps above 0, got {batch} and {eps}")
    drawn = train if population is None else population
    if not len(train) or not len(test) or not len(drawn):
        raise ValueError(
            f"expected examples, got {len(train)} for training and {len(test)} to test, batches drawn from"
            f" {len(drawn)}"
        )
    with tracer(objective, [train[0], test[0]], parameters) as trace:
        sizes = gradient_sizes(trace, drawn, batch, batch_size, progress)
        divisors = metric_divisors(sizes, eps, rates)
        numbers = sum(parameter.numel() for parameter in trace.parameters.values())
        together = max(1, HELD_NUMBERS // numbers)
        columns = []
        for start in range(0, len(test), together):
            some = test[start : start + together]
            queries = _divided(trace, some, divisors, batch_size)
            batches = followed(trace.batches(train, batch_size), len(train), progress)
            columns.append(torch.cat([scores(queries, trace(one), len(some)) for one in batches]))
    return InfluenceScores(
        torch.cat(columns, 1).cpu().numpy(),
        method="gradient_adam",
        units="loss / parameter",
        covers=tuple(trace.parameters),
        provenance={"batch": batch, "eps": eps if isinstance(eps, float) else dict(eps), **trace.about},
        weighing="rate",
        coverage=share_of_trained(objective.module, trace.parameters),
    )


@method("gradient_adam")
def _in_context(context: AttributionContext, *, batch: int | None = None, **options: Any) -> InfluenceScores:
    """batch : None: the run's own."""
    batch = context.batch if batch is None else batch
    if batch is None:
        raise ValueError("gradient_adam needs batch, the number of examples in a training step")
    given = {"batch": batch, "population": context.curvature, **options}
    return context.at_last_checkpoint(adam_similarity, **given)


def gradient_sizes(
    trace: Tracer, population: Sequence[Any], batch: int, batch_size: int, progress: bool
) -> dict[str, Tensor]:
    """√v of each parameter, where v = (1 − 1/b) m² + (1/b) · the mean of the squared gradients."""
    sums = GradientSums()
    for examples in followed(trace.batches(population, batch_size), len(population), progress, "sizes"):
        sums.add(trace(examples))
    return sums.sizes(batch)


@dataclass
class GradientSums:
    """Sums over examples of the gradients and of their squares, by parameter; of so many examples."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0

    def add(self, traced: Traced) -> None:
        """Add the examples of a batch, whose gradients of one parameter are in memory for some at a time."""
        for name, parts in traced.parts.items():
            for gradients in _in_turn(parts, len(traced.losses)):
                self.sums[name] = gradients.sum(0) + self.sums.get(name, 0.0)
                self.squares[name] = gradients.square().sum(0) + self.squares.get(name, 0.0)
        self.examples += len(traced.losses)

    def join(self, other: GradientSums) -> None:
        """Add the examples of other sums."""
        for ours, theirs in ((self.sums, other.sums), (self.squares, other.squares)):
            for name, value in theirs.items():
                ours[name] = value + ours.get(name, 0.0)
        self.examples += other.examples

    def sizes(self, batch: int) -> dict[str, Tensor]:
        """√v of each parameter, for batches of so many examples."""
        n = self.examples
        return {
            name: ((1 - 1 / batch) * (total / n).square() + self.squares[name] / (n * batch)).sqrt()
            for name, total in self.sums.items()
        }


def _in_turn(parts: Sequence[GradientPart], examples: int) -> Iterator[Tensor]:
    """The whole gradients of a parameter, of as many examples at a time as have at most SUMMED_NUMBERS."""
    together = max(1, SUMMED_NUMBERS // parts[0].numbers)
    for start in range(0, examples, together):
        some = slice(start, start + together)
        yield dense([part.each(lambda values, some=some: values[some]) for part in parts])  # type: ignore[misc]


def metric_divisors(
    sizes: Mapping[str, Tensor], eps: float | Mapping[str, float], rates: Mapping[str, float] | None
) -> dict[str, Tensor]:
    """(√v + ε)/rate of each parameter whose rate is not 0; 1/rate of those that have no ε."""
    found = {}
    for name, size in sizes.items():
        own = plain_name(name)
        rate = 1.0 if rates is None else rates.get(own, 0.0)
        own_eps = eps.get(own) if isinstance(eps, Mapping) else eps
        if rate != 0:
            found[name] = (torch.ones_like(size) if own_eps is None else size + own_eps) / rate
    return found


def _divided(trace: Tracer, test: Sequence[Any], divisors: dict[str, Tensor], batch_size: int) -> Queries:
    """∇L(z) / (√v + ε) of a few test examples, without the parameters that no training example has a gradient
    for."""
    found: dict[str, list[Tensor]] = {name: [] for name in divisors}
    for examples in trace.batches(test, batch_size):
        parts = trace(examples).parts
        for name, divisor in divisors.items():
            there = name in parts
            gradients = dense(parts[name]) if there else divisor.new_zeros(len(examples), *divisor.shape)
            found[name].append(gradients / divisor)
    return {name: [Summed(torch.cat(parts)[:, None])] for name, parts in found.items()}
