"""Influence with the EK-FAC approximation of the inverse Fisher matrix.

    score(i, z) = ∇L(z)ᵀ (Ĝ + λI)⁻¹ ∇L(i)

Positive: training on i lowers the loss of z. Units: loss of z per weight of i in the mean over the training
set; a copy of i has weight 1/N, and leaving i out is weight −1/N. Koh & Liang 2017; Grosse et al. 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simfluence.attribution.ekfac.factors import EKFACFactors
from simfluence.attribution.ekfac.fitting import Fisher, ekfac_factors
from simfluence.attribution.ekfac.queries import Held, Preconditioner, QueryBuilder
from simfluence.attribution.gradients import followed, gradient_similarity
from simfluence.attribution.objective import Objective
from simfluence.attribution.scores import InfluenceScores
from simfluence.attribution.tracing import Tracer, tracer

UNITS = "loss per weight of an example in the training mean"


def ekfac(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    factors: EKFACFactors | None = None,
    preconditioner: Preconditioner = "ekfac",
    damping: float | None = None,
    rank: int | None = None,
    parameters: Sequence[str] | None = None,
    fisher: Fisher = "true",
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> InfluenceScores:
    """EK-FAC influence of every training example on every test example.

    One pass over the test gradients, which are preconditioned and held, and one over the training gradients.

    Parameters
    ----------
    factors : of these weights, from :func:`ekfac_factors`; None: made here, of ``train``.
    preconditioner : "ekfac"; "kfac", with products of the factors' eigenvalues in place of Λ; or "identity",
        the dot product of gradients (units loss² / parameter²).
    damping : λ of every block; None: 0.1 · mean(Λ) of each; 0: the pseudo-inverse.
    rank : of what is held of every query and matrix; 32 keeps hundreds of queries in little memory. None:
        the whole matrices, queries × parameters numbers.
    parameters, fisher, seed : of the factors that are made here.
    batch_size : examples in a pass; scores do not depend on it, but for drawn labels.

    Raises
    ------
    ValueError : nothing to train; parameters given beside factors.
    RunDataError : factors of other weights.
    """
    if preconditioner not in ("ekfac", "kfac", "identity"):
        raise ValueError(f"preconditioner must be 'ekfac', 'kfac' or 'identity', got {preconditioner!r}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, or None, got {rank}")
    if preconditioner == "identity":
        return gradient_similarity(
            objective, train, test, parameters=parameters, batch_size=batch_size, progress=progress
        )
    factors = _factors(objective, train, factors, parameters, fisher, seed, batch_size, progress)
    options = {"preconditioner": preconditioner, "damping": damping, "rank": rank}
    with _held(objective, train, test, factors, options, batch_size, progress) as (trace, held):
        parts = []
        for batch in followed(trace.batches(train, batch_size), len(train), progress, "training"):
            parts.append(torch.stack(list(held.scores(trace(batch)).values())).sum(0))
    return InfluenceScores(
        torch.cat(parts).cpu().numpy(),
        method=preconditioner,
        units=UNITS,
        covers=factors.parameters,
        provenance={**factors.about, "damping": damping, "rank": rank},
        weighing="run",
    )


@dataclass(frozen=True, eq=False)
class LayerTokenScores:
    """Scores taken apart. Block and token parts, and ``whole``, add up to ``total``.

    blocks : names, lowest first.
    tokens : float [block, train, test, token], by token of the training example (of all its sequences in
        turn; padding left out, zeros at the end).
    whole : float [block, train, test], of blocks that see no single tokens: what is pooled, or
        differentiated directly.
    lengths : int [train], tokens of each training example.

    A token's part is that of the gradient that arises there, which depends on the rest of the sequence.
    """

    blocks: tuple[str, ...]
    tokens: npt.NDArray[np.floating]
    whole: npt.NDArray[np.floating]
    lengths: npt.NDArray[np.int64]

    @property
    def by_layer(self) -> npt.NDArray[np.floating]:
        """[block, train, test]."""
        return self.tokens.sum(-1) + self.whole

    @property
    def total(self) -> npt.NDArray[np.floating]:
        """[train, test]."""
        return self.by_layer.sum(0)


def ekfac_by_layer_and_token(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    factors: EKFACFactors,
    preconditioner: Preconditioner = "ekfac",
    damping: float | None = None,
    rank: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> LayerTokenScores:
    """The scores of :func:`ekfac` by block and by token of the training example; meant for a few pairs.

        score(i, z) = Σ_ℓ Σ_t P_{z,ℓ} · ∂L(i)/∂(use of ℓ at t)

    factors : made on the whole training set, while ``train`` may be a few of it.
    """
    if preconditioner not in ("ekfac", "kfac"):
        raise ValueError(f"preconditioner must be 'ekfac' or 'kfac', got {preconditioner!r}")
    factors.check(objective.module)
    options = {"preconditioner": preconditioner, "damping": damping, "rank": rank}
    lengths = np.array([_length(objective, example) for example in train])
    names = [block.name for block in factors.blocks]
    tokens = np.zeros((len(names), len(train), len(test), max(lengths)))
    whole = np.zeros(tokens.shape[:-1])
    with _held(objective, train, test, factors, options, batch_size, progress) as (trace, held):
        done = 0
        for batch in followed(trace.batches(train, batch_size), len(train), progress, "training"):
            for name, uses in held.token_scores(trace(batch)).items():
                for mask, values in uses:
                    for row, example in enumerate(range(done, done + len(batch))):
                        where = names.index(name), example
                        _place(tokens[where], whole[where], mask, values, row, lengths[example])
            done += len(batch)
    return LayerTokenScores(tuple(names), tokens, whole, lengths)


def _place(
    tokens: npt.NDArray[np.floating],
    whole: npt.NDArray[np.floating],
    mask: Tensor | None,
    values: Tensor,
    row: int,
    length: int,
) -> None:
    """Add one example's parts [token, query] to its tokens [query, token], if it has as many."""
    parts = values[row].double().cpu().numpy()
    if mask is not None and int(mask[row].sum()) == length:
        tokens[:, :length] += parts[mask[row].cpu().numpy()].T
    else:
        whole += parts.sum(0)


def _length(objective: Objective, example: Any) -> int:
    """Tokens of an example, of all its sequences."""
    masks = objective.masks([example])
    return int(masks[0].sum()) if masks else 1


def _factors(
    objective: Objective,
    train: Sequence[Any],
    factors: EKFACFactors | None,
    parameters: Sequence[str] | None,
    fisher: Fisher,
    seed: int,
    batch_size: int,
    progress: bool,
) -> EKFACFactors:
    if factors is None:
        return ekfac_factors(
            objective,
            train,
            parameters=parameters,
            fisher=fisher,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
    if parameters is not None:
        raise ValueError("parameters are those of the factors: give one of both")
    factors.check(objective.module)
    return factors


@contextmanager
def _held(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    factors: EKFACFactors,
    options: dict[str, Any],
    batch_size: int,
    progress: bool,
) -> Iterator[tuple[Tracer, Held]]:
    """A tracer of the factors' parameters, and the preconditioned gradients of the test examples."""
    if not len(train) or not len(test):
        raise ValueError(f"there is nothing to score: {len(train)} training and {len(test)} test examples")
    with tracer(objective, [train[0], test[0]], factors.parameters) as trace:
        queries = QueryBuilder(factors, **options, train=len(train), test=len(test))
        for batch in followed(trace.batches(test, batch_size), len(test), progress, "queries"):
            queries.add(trace(batch))
        yield trace, queries.held()
