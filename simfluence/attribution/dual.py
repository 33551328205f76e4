"""Exact influence with the damped Gauss-Newton matrix, where all examples together have few outputs.

    G = (1/N) BᵀB,   rows B_i = R_iᵀ J_i,   H_i = R_i R_iᵀ,   K = BBᵀ [row, row]

    (G + λI)⁻¹ Bᵀ = Bᵀ (K/N + λI)⁻¹
    (G + λI)⁻¹    = (I − Bᵀ (K/N + λI)⁻¹ B/N) / λ

A row is the gradient of a weighted sum of an example's outputs, a column of R_i being the weights, as many as
H_i has rank (of C classes, C − 1). The gradient of an example's own loss is Bᵀc, R_i c_i = ∂L_i/∂h_i, where
H_i reaches that slope: the first equation has no differences of large numbers, and is used for those
examples that G is the mean over. Everything is inner products of gradients (:mod:`.products`), in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simfluence.attribution.curvature import GaussNewton, positive_damping
from simfluence.attribution.gradients import followed
from simfluence.attribution.objective import Losses, Objective
from simfluence.attribution.products import held, scores
from simfluence.attribution.tracing import Traced, Tracer, tracer
from simfluence.recording.evaluator import undisturbed

LARGEST = 4096
"""The solver "auto" is this one up to so many outputs of all examples together."""

_NUMBERS = 2**27  # at most so many numbers of gradients are in memory at once: 1 GB


def outputs_in_all(matrix: GaussNewton) -> int:
    """The outputs of all examples together, if all have as many as the first."""
    with undisturbed(matrix.objective.module), torch.no_grad():
        return len(matrix.examples) * matrix.objective.outputs(matrix.examples[:1]).numel()


def dual_influence(
    matrix: GaussNewton,
    train: Sequence[Any],
    test: Sequence[Any],
    damping: float | None = None,
    *,
    progress: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """∇L(z)ᵀ (G + λI)⁻¹ ∇L(i) [train, test], and a report.

    damping : λ > 0; None: a tenth of G's mean eigenvalue, tr K / (N · parameters).

    Raises ValueError if ``damping`` is None and G is zero.
    """
    names, curved = list(matrix.parameters), list(matrix.examples)  # held: data sets may make them anew
    train = curved if train is matrix.examples else list(train)
    with tracer(matrix.objective, [curved[0], test[0]], names) as trace:
        rows: list[Traced] = []
        places: list[
            tuple[int, Tensor]
        ] = []  # of the rows: the first example, and c of it and those after it
        exact, done = True, 0
        for batch in followed(trace.batches(curved, matrix.batch_size), len(curved), progress, "curvature"):
            local = _local(matrix.objective, batch)
            exact = exact and local.reached
            for weights, c in zip(local.roots, local.coordinates, strict=True):
                rows.append(_wide(trace(batch, _weighted(matrix.objective, weights))))
                places.append((done, c))
            done += len(batch)
        of_tests = _gradients(trace, test, matrix.batch_size)
        together = max(1, _NUMBERS // matrix.size)
        gram, shared = (_products(rows, some, together) for some in (rows, of_tests))  # K, B∇L(z)
        λ = positive_damping(damping, lambda: float(gram.trace()) / len(curved) / matrix.size)
        system = gram / len(curved)
        system.diagonal().add_(λ)
        solved = torch.linalg.solve(system, shared)
        residual = (shared - system @ solved).norm() / shared.norm().clamp_min(torch.finfo(shared.dtype).tiny)
        report = {"solver": "dual", "damping": λ, "rows": len(gram), "residual": float(residual)}
        place = {id(example): number for number, example in enumerate(curved)}
        if exact and all(id(example) in place for example in train):
            report |= trace.about
            found = _coordinates(places, len(curved)).to(solved) @ solved
            return found[[place[id(example)] for example in train]], report
        of_train = _gradients(trace, train, matrix.batch_size)
        correction = _products(of_train, rows, together) @ solved / len(curved)
        report |= trace.about
        return (_products(of_train, of_tests, together) - correction) / λ, report


@dataclass(frozen=True)
class _Local:
    """The slope and the curvature of a batch's losses at its outputs.

    roots : the columns of R [column, example, …], … the shape of an example's outputs.
    coordinates : c [column, example].
    reached : whether R c is the slope of every example.
    """

    roots: Tensor
    coordinates: Tensor
    reached: bool


def _local(objective: Objective, batch: Sequence[Any]) -> _Local:
    with torch.no_grad():
        outputs = objective.outputs(batch).double()
    with torch.enable_grad():
        outputs.requires_grad_()
        losses = objective.output_losses(outputs, batch)
        (slope,) = torch.autograd.grad(losses.sum(), outputs, create_graph=True)
        flat = slope.flatten(1)
        hessian = torch.stack(
            [
                torch.autograd.grad(column.sum(), outputs, retain_graph=True)[0].flatten(1)
                if flat.requires_grad
                else torch.zeros_like(flat)
                for column in flat.T
            ],
            1,
        )
    slopes = flat.detach()
    values, vectors = torch.linalg.eigh((hessian + hessian.transpose(1, 2)) / 2)
    counts = values > 1e-12 * values.amax(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    some = slice(values.shape[1] - int(counts.sum(1).max()), None)  # they are in ascending order
    values, vectors, counts = values[:, some], vectors[..., some], counts[:, some]
    roots = vectors * (values * counts).sqrt()[:, None]
    along = (vectors.transpose(1, 2) @ slopes[..., None])[..., 0] * counts
    rest = slopes - (vectors @ along[..., None])[..., 0]
    coordinates = torch.where(counts, along / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt(), 0.0)
    columns = roots.permute(2, 0, 1).reshape(-1, *outputs.shape)
    return _Local(columns, coordinates.T, bool((rest.norm(dim=1) <= 1e-8 * slopes.norm(dim=1)).all()))


def _weighted(objective: Objective, weights: Tensor) -> Losses:
    """A loss that is the weighted sum of each example's outputs."""

    def losses(examples: Sequence[Any]) -> Tensor:
        outputs = objective.outputs(examples)
        return (outputs * weights.to(outputs)).flatten(1).sum(1)

    return losses


def _gradients(trace: Tracer, examples: Sequence[Any], batch_size: int) -> list[Traced]:
    return [_wide(trace(batch)) for batch in trace.batches(examples, batch_size)]


def _wide(traced: Traced) -> Traced:
    """In float64."""
    return traced.each(lambda values: values.double() if values.is_floating_point() else values)


def _products(left: Sequence[Traced], right: Sequence[Traced], together: int) -> Tensor:
    """⟨l, r⟩ of all gradients, [left, right]; of the right, ``together`` are held while the left pass."""
    found = []
    for some in _grouped(right, together):
        queries, count = held(some), _count(some)
        parts = [scores(queries, traced, count) for traced in left]
        found.append(torch.cat(parts) if parts else torch.zeros(0, count, dtype=torch.float64))
    return torch.cat(found, 1) if found else torch.zeros(_count(left), 0, dtype=torch.float64)


def _count(batches: Sequence[Traced]) -> int:
    return sum(len(traced.losses) for traced in batches)


def _grouped(batches: Sequence[Traced], size: int) -> Iterator[list[Traced]]:
    some: list[Traced] = []
    for traced in batches:
        some.append(traced)
        if _count(some) >= size:
            yield some
            some = []
    if some:
        yield some


def _coordinates(places: Sequence[tuple[int, Tensor]], examples: int) -> Tensor:
    """c of every example, [example, row]."""
    matrices = [torch.zeros(examples, 0, dtype=torch.float64)]
    for start, c in places:
        matrices.append(torch.zeros(examples, len(c), dtype=torch.float64))
        matrices[-1][start : start + len(c)] = c.diag()
    return torch.cat(matrices, 1)
