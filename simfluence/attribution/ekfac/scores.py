"""Influence with the EK-FAC approximation of the inverse Fisher matrix.

    score(i, z) = ∇L(z)ᵀ (Ĝ + λI)⁻¹ ∇L(i)

Positive: training on i lowers the loss of z. Units: loss of z per weight of i in the mean over the training
set; a copy of i has weight 1/N, and leaving i out is weight −1/N. Koh & Liang 2017; Grosse et al. 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simfluence.attribution.ekfac.cache import GradientCache
from simfluence.attribution.ekfac.factors import EKFACFactors
from simfluence.attribution.ekfac.fitting import MEMORY, Fisher, Settings, fitted
from simfluence.attribution.ekfac.queries import Held, Preconditioner, QueryBuilder
from simfluence.attribution.gradients import followed, gradient_similarity
from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import share_of_trained
from simfluence.attribution.tracing import Tracer, tracer
from simfluence.scores import InfluenceScores

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
    memory: float = MEMORY,
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
    rank : of the approximation of every query's matrices; None: the whole matrices, queries × parameters
        numbers. With 32, hundreds of queries take a fraction of that memory. It is not faster: making the
        approximations takes longer than they save (analysis/benchmarks/attribution.md has times, memory and
        errors).
    parameters, fisher, seed : of the factors, if they are made here.
    batch_size : examples in a pass; scores depend on it only through the labels that are drawn.
    memory : as in :func:`ekfac_factors`. The empirical Fisher matrix has the same gradients as the scores; if
        its factors are made here and the gradients fit, they are computed only once.

    Raises
    ------
    ValueError : there is nothing to train, or parameters are given beside factors.
    RunDataError : the factors are of other weights.
    """
    if preconditioner not in ("ekfac", "kfac", "identity"):
        raise ValueError(f"preconditioner must be 'ekfac', 'kfac' or 'identity', got {preconditioner!r}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, or None, got {rank}")
    if preconditioner == "identity":
        products = gradient_similarity(
            objective, train, test, parameters=parameters, batch_size=batch_size, progress=progress
        )
        return replace(products, method="ekfac", provenance={"preconditioner": "identity"})
    if fisher not in ("true", "empirical"):
        raise ValueError(f"fisher must be 'true' or 'empirical', got {fisher!r}")
    if factors is not None:
        if parameters is not None:
            raise ValueError("parameters are those of the factors: give one of both")
        factors.check(objective.module)
        parameters = factors.parameters
    options = {"preconditioner": preconditioner, "damping": damping, "rank": rank}
    with _scoring(objective, train, test, parameters) as trace:
        cache = GradientCache(len(train), memory if factors is None and fisher == "empirical" else 0)
        if factors is None:
            factors = fitted(trace, train, Settings(fisher, seed, batch_size, memory, progress), cache)
        options["train"] = 0 if cache.complete else len(train)
        held = _held(trace, factors, test, options, batch_size, progress)
        if cache.complete:
            parts = [held.scores_in_eigenbases(traced) for traced in cache.taken()]
        else:
            batches = followed(trace.batches(train, batch_size), len(train), progress, "training")
            parts = [held.scores(trace(batch)) for batch in batches]
    return InfluenceScores(
        torch.cat(parts).cpu().numpy(),
        method="ekfac",
        units=UNITS,
        covers=factors.parameters,
        provenance={**factors.about, "preconditioner": preconditioner, "damping": damping, "rank": rank}
        | trace.about,
        weighing="run",
        coverage=share_of_trained(objective.module, factors.parameters),
    )


@dataclass(frozen=True, eq=False)
class LayerTokenScores:
    """Scores taken apart. Block and token parts, and ``whole``, add up to ``total``.

    blocks : names, lowest first.
    tokens : float [block, train, test, token], the scores by token of the training example (the tokens of all
        its sequences in turn, without padding; zeros at the end).
    whole : float [block, train, test], the scores of blocks that have no tokens: they work on pooled values,
        or are differentiated directly.
    lengths : int [train], tokens of each training example.

    A token's score is of the gradient that arises at this token; it depends on the rest of the sequence too.
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
    options = {"preconditioner": preconditioner, "damping": damping, "rank": rank, "train": len(train)}
    lengths = np.array([_length(objective, example) for example in train])
    names = [block.name for block in factors.blocks]
    tokens = np.zeros((len(names), len(train), len(test), max(lengths)))
    whole = np.zeros(tokens.shape[:-1])
    with _scoring(objective, train, test, factors.parameters) as trace:
        held = _held(trace, factors, test, options, batch_size, progress)
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


@contextmanager
def _scoring(
    objective: Objective, train: Sequence[Any], test: Sequence[Any], parameters: Sequence[str] | None
) -> Iterator[Tracer]:
    if not len(train) or not len(test):
        raise ValueError(f"there is nothing to score: {len(train)} training and {len(test)} test examples")
    with tracer(objective, [train[0], test[0]], parameters) as trace:
        yield trace


def _held(
    trace: Tracer,
    factors: EKFACFactors,
    test: Sequence[Any],
    options: dict[str, Any],
    batch_size: int,
    progress: bool,
) -> Held:
    """The preconditioned gradients of the test examples."""
    queries = QueryBuilder(factors, **options, test=len(test))
    for batch in followed(trace.batches(test, batch_size), len(test), progress, "queries"):
        queries.add(trace(batch))
    return queries.held()
