"""Two passes over the training examples: first the eigenbases, then the eigenvalues in them.

    A = Σ_t a_t a_tᵀ / T     S = Σ_t g_t g_tᵀ / T     over the T tokens of all examples that are not padding
    A = Q_A diag(λ_A) Q_Aᵀ   S = Q_S diag(λ_S) Q_Sᵀ
    Λ = (1/N) Σ_i (Q_Sᵀ G_i Q_A)²                     over the N examples, G_i = Σ_t g_t a_tᵀ

g are gradients of the losses of labels drawn from the model (true Fisher), or of the right labels
(empirical). K-FAC approximates the Fisher matrix by T/N · A ⊗ S, where T/N is the mean number of tokens in an
example. George et al. 2018; Grosse et al. 2023, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import scipy.linalg
import torch
from torch import Tensor

from simfluence.attribution.buffers import fresh
from simfluence.attribution.checkpoints import losses_fingerprint, weights_fingerprint
from simfluence.attribution.ekfac.blocks import Block, blocks_of
from simfluence.attribution.ekfac.cache import GradientCache
from simfluence.attribution.ekfac.factors import EKFACFactors, Factors
from simfluence.attribution.ekfac.moments import MOMENTS, Squares, vanishes
from simfluence.attribution.ekfac.rotation import add_squares, in_eigenbases
from simfluence.attribution.ekfac.stages import Stages
from simfluence.attribution.gradient_parts import merged
from simfluence.attribution.gradients import followed
from simfluence.attribution.layers import wide_type
from simfluence.attribution.objective import Objective
from simfluence.attribution.tracing import Traced, Tracer, tracer
from simfluence.kernels.threads import in_threads

Fisher = Literal["true", "empirical"]

MEMORY = 2**31
"""Bytes that the cache of gradients may take by default."""


def ekfac_factors(
    objective: Objective,
    train: Sequence[Any],
    *,
    parameters: Sequence[str] | None = None,
    fisher: Fisher = "true",
    seed: int = 0,
    batch_size: int = 8,
    memory: float = MEMORY,
    progress: bool = False,
    folder: str | Path | None = None,
) -> EKFACFactors:
    """The EK-FAC approximation of the Fisher matrix E_i[∇L_i ∇L_iᵀ] at the model's weights.

    Parameters
    ----------
    parameters : see :func:`.parameters.selected_parameters`; None: all that require gradients.
    fisher : "true": labels are drawn from the model's own distribution; "empirical": the right labels.
    seed : of the drawn labels. They depend on ``batch_size`` too; nothing else does.
    batch_size : examples in a pass.
    memory : bytes that the cache may take, which keeps the gradients of the first pass for the second (inputs
        and output gradients of all layers, for all tokens). If they do not fit, they are computed again.
    folder : keeps what is finished (covariances, then eigenvectors, then the factors), so that an interrupted
        computation can be continued.

    Notes
    -----
    Beside the cache, the passes themselves take memory, and so do the covariances: about four times the
    squared numbers of all layers' inputs and outputs.

    Raises
    ------
    ValueError : there is nothing to train, there are no examples, or gradients are not finite (the message
        names the layer).
    RunDataError : the folder has factors of other weights, examples or settings.
    """
    if fisher not in ("true", "empirical"):
        raise ValueError(f"fisher must be 'true' or 'empirical', got {fisher!r}")
    if not train:
        raise ValueError("there are no training examples to make factors from")
    with tracer(objective, train, parameters) as trace:
        return fitted(trace, train, Settings(fisher, seed, batch_size, memory, progress, folder))


@dataclass(frozen=True)
class Settings:
    """See :func:`ekfac_factors`."""

    fisher: Fisher
    seed: int
    batch_size: int
    memory: float
    progress: bool
    folder: str | Path | None = None


def about_factors(objective: Objective, train: Sequence[Any], fisher: Fisher, seed: int) -> dict[str, Any]:
    """What identifies factors: the weights, the labels, and the examples with two of their losses."""
    return {
        "weights": weights_fingerprint(objective.module),
        "fisher": fisher,
        "seed": seed if fisher == "true" else None,
        "examples": len(train),
        "losses": losses_fingerprint(objective, [train[0], train[-1]]),
    }


def fitted(
    trace: Tracer, train: Sequence[Any], settings: Settings, rotated: GradientCache | None = None
) -> EKFACFactors:
    """See :func:`ekfac_factors`.

    rotated : a cache that is filled with the gradients in their eigenbases, by block, unless the factors were
        loaded from the folder.
    """
    about = about_factors(trace.objective, train, settings.fisher, settings.seed)
    about["batch_size"] = settings.batch_size
    stages = Stages(settings.folder, {**about, "parameters": list(trace.parameters)})
    device = next(iter(trace.parameters.values())).device
    if (found := stages.load("factors")) is None:
        cache = GradientCache(len(train), settings.memory)
        if (found := stages.load("eigenbases")) is None:
            found = _first_pass(trace, train, settings, stages, cache)
            stages.keep("eigenbases", found)
        found = _second_pass(found.to(device), trace, train, settings, cache, rotated)
        stages.keep("factors", found)
    return replace(found.to(device), about=about)


def _first_pass(
    trace: Tracer, train: Sequence[Any], settings: Settings, stages: Stages, cache: GradientCache
) -> EKFACFactors:
    """The factors, where Kronecker blocks have no Λ yet. cache : is filled with the gradients."""
    blocks = blocks_of(trace)
    moments = {block.name: MOMENTS[block.treatment](block) for block in blocks}
    if not stages.load_moments(moments, next(iter(trace.parameters.values())).device):
        for traced in _traced(trace, train, settings, "covariances"):
            by_block = {b.name: merged(traced.parts.get(b.parameters[0], [])) for b in blocks}
            squares = Squares(by_block.values())
            for name, parts in by_block.items():
                if parts:
                    moments[name].add(parts, squares)
            cache.add(traced, copy=True)
        stages.keep_moments(moments)
    sizes = {
        block.name: float(moments[block.name].size) for block in blocks if block.treatment == "kronecker"
    }
    return EKFACFactors(tuple(blocks), _eigenbases(blocks, moments, trace, len(train)), {"sizes": sizes})


def _second_pass(
    found: EKFACFactors,
    trace: Tracer,
    train: Sequence[Any],
    settings: Settings,
    cache: GradientCache,
    rotated: GradientCache | None,
) -> EKFACFactors:
    """The factors with Λ. cache : gradients of the first pass. rotated : is filled, see :func:`fitted`."""
    factors, sizes = dict(found.factors), found.about["sizes"]
    sums = {
        block.name: _zeros(block.shape, trace) for block in found.blocks if block.treatment == "kronecker"
    }
    for traced in cache.taken() if cache.complete else _traced(trace, train, settings, "eigenvalues"):
        in_bases = in_eigenbases(traced, found.blocks, factors)
        for name in sums.keys() & in_bases.parts.keys():
            add_squares(sums[name], in_bases.parts[name])
        if rotated is not None:
            rotated.add(in_bases, copy=False)
    for name, total in sums.items():
        factors[name] = replace(factors[name], eigenvalues=total / len(train))
        if vanishes(total.sum(), sizes[name]):
            nothing = torch.zeros_like(factors[name].out_values)  # type: ignore[arg-type]
            factors[name] = replace(factors[name], eigenvalues=torch.zeros_like(total), out_values=nothing)
    return EKFACFactors(found.blocks, factors, {})


def _traced(trace: Tracer, train: Sequence[Any], settings: Settings, what: str) -> Iterator[Traced]:
    """The gradients, batch after batch; every call draws the same labels."""
    objective = trace.objective
    device = next(iter(trace.parameters.values())).device
    generator = torch.Generator(device).manual_seed(settings.seed)

    def drawn(examples: Sequence[Any]) -> Tensor:
        return objective.sampled_losses(objective.outputs(examples), examples, generator)

    for batch in followed(trace.batches(train, settings.batch_size), len(train), settings.progress, what):
        yield trace(batch, drawn if settings.fisher == "true" else None)


def _eigenbases(
    blocks: Sequence[Block], moments: dict[str, Any], trace: Tracer, examples: int
) -> dict[str, Factors]:
    """The factors from the sums of the first pass; those of Kronecker blocks have no Λ yet."""
    matrices: dict[tuple[str, str], Tensor] = {}
    for block in blocks:
        moment = moments[block.name]
        if block.treatment == "dense":
            total = _zeros((block.size, block.size), trace) if moment.total is None else moment.total
            total = torch.zeros_like(total) if vanishes(total.trace(), moment.size) else total
            matrices[block.name, "out"] = _finite(total / examples, block)
        elif block.treatment == "kronecker":
            sides = zip(("out", "in"), (moment.out, moment.inputs), block.shape, strict=True)
            for side, total, length in sides:
                total = _zeros((length, length), trace) if total is None else _mirrored(total)
                matrices[block.name, side] = _finite(total / max(moment.tokens, 1), block)
            moment.out = moment.inputs = None
    solved, found = _eigen(matrices), {}
    for block in blocks:
        moment = moments[block.name]
        if block.treatment == "dense":
            found[block.name] = Factors(*solved[block.name, "out"])
        elif block.treatment == "kronecker":
            (out_values, out_basis), (in_values, in_basis) = (
                solved[block.name, "out"],
                solved[block.name, "in"],
            )
            nothing, share = out_values.new_zeros(0), moment.tokens / examples
            found[block.name] = Factors(nothing, out_basis, in_basis, out_values, in_values, share)
        else:
            total = _zeros(block.shape, trace) if moment.total is None else moment.total
            found[block.name] = Factors(_finite(total / examples, block))
    return found


def _eigen(matrices: dict[tuple[str, str], Tensor]) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Eigenvalues, at least 0, and eigenvectors in columns, in float64; equal matrices are solved once."""
    different: list[Tensor] = []
    which = {}
    for key, matrix in matrices.items():
        same = (n for n, m in enumerate(different) if m.shape == matrix.shape and torch.equal(m, matrix))
        which[key] = next(same, len(different))
        different += [matrix] if which[key] == len(different) else []

    def solve(matrix: Tensor) -> tuple[Tensor, Tensor]:
        wide = matrix.double()
        if wide.device.type == "cpu":  # the same, and faster than torch's
            found = scipy.linalg.eigh(wide.T.numpy(), driver="evd", overwrite_a=True, check_finite=False)
            values, vectors = map(torch.from_numpy, found)
        else:
            values, vectors = torch.linalg.eigh(wide)
        return values.clamp_min(0).to(matrix.dtype), vectors.to(matrix.dtype).contiguous()

    solved = list(in_threads(solve, different))  # a matrix a thread: faster than all threads for each
    return {key: solved[number] for key, number in which.items()}


def _mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of which the upper half is given."""
    return upper.triu() + upper.triu(1).T


def _finite(values: Tensor, block: Block) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"the gradients of {block.name} are not finite; are the model's losses?")
    return values


def _zeros(shape: tuple[int, ...], trace: Tracer) -> Tensor:
    """Zeros of the type that gradients have."""
    parameter = next(iter(trace.parameters.values()))
    return fresh(parameter.new_empty(0, dtype=wide_type(parameter)), *shape).zero_()
