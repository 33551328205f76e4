"""Two passes over the training examples: first the eigenbases, then the eigenvalues in them.

    A = Σ_t a_t a_tᵀ / T     S = Σ_t g_t g_tᵀ / T     over the T tokens of all examples that are not padding
    A = Q_A diag(λ_A) Q_Aᵀ   S = Q_S diag(λ_S) Q_Sᵀ
    Λ = (1/N) Σ_i (Q_Sᵀ G_i Q_A)²                     over the N examples, G_i = Σ_t g_t a_tᵀ

g are gradients of the losses of labels drawn from the model (true Fisher), or of the right ones (empirical).
Multiplied by T/N, the tokens an example has, A ⊗ S is the Fisher matrix as K-FAC has it. George et al. 2018;
Grosse et al. 2023, section 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from simfluence.attribution.checkpoints import weights_fingerprint
from simfluence.attribution.ekfac.blocks import Block, blocks_of
from simfluence.attribution.ekfac.factors import EKFACFactors, Factors
from simfluence.attribution.gradients import followed
from simfluence.attribution.objective import Objective
from simfluence.attribution.pieces import Outer, Piece, Rows, Summed, dense, merged
from simfluence.attribution.tracing import Traced, Tracer, tracer

Fisher = Literal["true", "empirical"]


def ekfac_factors(
    objective: Objective,
    train: Sequence[Any],
    *,
    parameters: Sequence[str] | None = None,
    fisher: Fisher = "true",
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> EKFACFactors:
    """The EK-FAC approximation of the Fisher matrix E_i[∇L_i ∇L_iᵀ] at the model's weights.

    Parameters
    ----------
    parameters : see :func:`.parameters.selected_parameters`; None: all that require gradients.
    fisher : "true": labels are drawn from the model's own distribution; "empirical": the right labels.
    seed : of the drawn labels. They depend on ``batch_size`` too; nothing else does.
    batch_size : examples in a pass.

    Notes
    -----
    Memory: besides the passes', three times the squares of all layers' inputs and outputs.

    Raises
    ------
    ValueError : nothing to train, no examples, or gradients that are not finite (with the layer's name).
    """
    if fisher not in ("true", "empirical"):
        raise ValueError(f"fisher must be 'true' or 'empirical', got {fisher!r}")
    if not train:
        raise ValueError("there are no training examples to make factors from")
    with tracer(objective, train, parameters) as trace:
        blocks = blocks_of(trace)
        follow = partial(_traced, trace, train, fisher, seed, batch_size, progress)
        moments = {block.name: _MOMENTS[block.treatment](block) for block in blocks}
        for traced in follow("covariances"):
            parts = {b.name: merged(traced.pieces.get(b.parameters[0], [])) for b in blocks}
            squares = _Squares(parts.values())
            for name, pieces in parts.items():
                if pieces:
                    moments[name].add(pieces, squares)
        factors = _eigenbases(blocks, moments, trace, len(train))
        sums = {block.name: _zeros(block, trace) for block in blocks if block.treatment == "kronecker"}
        for traced in follow("eigenvalues"):
            rotate = Rotation(factors)
            for block in blocks:
                if block.name in sums and block.parameters[0] in traced.pieces:
                    _add_squares(sums[block.name], rotate(block, traced))
    for name, total in sums.items():
        factors[name] = replace(factors[name], eigenvalues=total / len(train))
        if _vanishes(total.sum(), moments[name].size):
            nothing = torch.zeros_like(factors[name].out_values)  # type: ignore[arg-type]
            factors[name] = replace(factors[name], eigenvalues=torch.zeros_like(total), out_values=nothing)
    return EKFACFactors(
        tuple(blocks),
        factors,
        {
            "weights": weights_fingerprint(objective.module),
            "fisher": fisher,
            "seed": seed if fisher == "true" else None,
            "examples": len(train),
            "batch_size": batch_size,
        },
    )


def _traced(
    trace: Tracer,
    train: Sequence[Any],
    fisher: Fisher,
    seed: int,
    batch_size: int,
    progress: bool,
    what: str,
) -> Any:
    """The gradients batch after batch; the same labels every time."""
    objective = trace.objective
    device = next(iter(trace.parameters.values())).device
    generator = torch.Generator(device).manual_seed(seed)

    def drawn(examples: Sequence[Any]) -> Tensor:
        return objective.sampled_losses(objective.outputs(examples), examples, generator)

    for batch in followed(trace.batches(train, batch_size), len(train), progress, what):
        yield trace(batch, drawn if fisher == "true" else None)


# ------------------------------------------------------------------------------- the first pass


_ROUNDING = 100
"""Gradients that are smaller than so many units of rounding of what was added up to them are zero. (So are
those of whatever adds the same to all scores of a choice.)"""


def _vanishes(squares: Tensor, size: Tensor | float) -> bool:
    """Whether gradients whose squares [number] add up to that are nothing but the rounding of terms whose
    absolute values, added up and squared, are ``size``."""
    return float(squares) <= (_ROUNDING * torch.finfo(squares.dtype).eps) ** 2 * float(size)


class _Kronecker:
    """Sums over tokens of g gᵀ and a aᵀ."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.out: Tensor | None = None
        self.inputs: Tensor | None = None
        self.tokens = 0
        self.size: Tensor | float = 0.0

    def add(self, pieces: Sequence[Piece], squares: _Squares) -> None:
        (outer,) = pieces
        assert isinstance(outer, Outer)
        rows, columns = self.block.shape
        if self.out is None or self.inputs is None:
            self.out, self.inputs = outer.left.new_zeros(rows, rows), outer.right.new_zeros(columns, columns)
        ones = self.block.ones
        squares.add(self.out, outer.left, outer.mask, ones == "left")
        squares.add(self.inputs, outer.right, outer.mask, ones == "right")
        self.tokens += int(outer.mask.sum()) if outer.mask is not None else outer.shape.numel()
        lengths = outer.left.norm(dim=-1) * (outer.right.norm(dim=-1) + bool(ones))
        self.size = self.size + lengths.sum(1).square().sum()


class _Dense:
    """Sums over examples of v vᵀ, of gradients v."""

    def __init__(self, block: Block) -> None:
        self.total: Tensor | None = None
        self.size: Tensor | float = 0.0

    def add(self, pieces: Sequence[Piece], squares: _Squares) -> None:
        flat = dense(pieces).flatten(1)
        self.total = _plus(self.total, flat.T @ flat)
        for piece in pieces:
            terms = piece.values.abs() if isinstance(piece, Summed) else piece.dense().abs()[:, None]
            self.size = self.size + terms.sum(1).square().sum()


class _Diagonal:
    """Sums over examples of v², of gradients v."""

    def __init__(self, block: Block) -> None:
        self.shape = block.shape
        self.total: Tensor | None = None

    def add(self, pieces: Sequence[Piece], squares: _Squares) -> None:
        piece = pieces[0]
        if len(pieces) > 1 or not isinstance(piece, Rows):
            self.total = _plus(self.total, dense(pieces).square().sum(0).reshape(self.shape))
            return
        if self.total is None:
            self.total = piece.values.new_zeros(self.shape)
        # rows that an example looked up several times are added up before they are squared
        keys = piece.ids + piece.rows * torch.arange(len(piece.ids), device=piece.ids.device)[:, None]
        unique, where = keys.flatten().unique(return_inverse=True)
        values = piece.values.flatten(0, 1)
        sums = values.new_zeros(len(unique), values.shape[1]).index_add_(0, where, values)
        self.total.index_add_(0, unique % piece.rows, sums.square())


_MOMENTS: dict[str, Callable[[Block], Any]] = {
    "kronecker": _Kronecker,
    "dense": _Dense,
    "diagonal": _Diagonal,
}


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part.clone() if total is None else total.add_(part)


class _Squares:
    """Σ x xᵀ over the tokens of a batch, above the diagonal; once for an input that several layers share."""

    def __init__(self, batch: Iterable[Sequence[Piece]]) -> None:
        outers = [piece for pieces in batch for piece in pieces if isinstance(piece, Outer)]
        self._uses = Counter(_place(values) for o in outers for values in (o.left, o.right))
        self._known: dict[Any, Tensor] = {}

    def add(self, total: Tensor, values: Tensor, mask: Tensor | None, ones: bool) -> None:
        """total += Σ x xᵀ over tokens that are there, x with a last 1 where it is asked for."""
        place = _place(values)
        if self._uses[place] == 1:
            _add_square(total, values, mask, ones)
            return
        if (place, ones) not in self._known:
            self._known[place, ones] = torch.zeros_like(total)
            _add_square(self._known[place, ones], values, mask, ones)
        total += self._known[place, ones]


def _place(values: Tensor) -> Any:
    """Where a tensor lies: the same for what several layers were given."""
    return values.data_ptr(), values.shape, values.stride()


def _add_square(total: Tensor, values: Tensor, mask: Tensor | None, ones: bool, width: int = 192) -> None:
    """total += xᵀx [feature, feature], in blocks of its upper half."""
    flat = values.flatten(0, 1)
    if mask is not None and not bool(mask.all()):
        flat = flat[mask.flatten()]
    features = flat.shape[1]
    for start in range(0, features, width):
        rows = slice(start, min(start + width, features))
        total[rows, start:features].addmm_(flat[:, rows].T, flat[:, start:])
    if ones:
        total[:-1, -1] += flat.sum(0)
        total[-1, -1] += len(flat)


# --------------------------------------------------------------------------------- eigenbases


def _eigenbases(
    blocks: Sequence[Block], moments: dict[str, Any], trace: Tracer, examples: int
) -> dict[str, Factors]:
    """Factors, of Kronecker blocks still with K-FAC's eigenvalues."""
    known: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []
    found = {}
    for block in blocks:
        moment, zeros = moments[block.name], _zeros(block, trace)
        if block.treatment == "diagonal":
            total = zeros if moment.total is None else moment.total
            found[block.name] = Factors(_finite(total / examples, block))
        elif block.treatment == "dense":
            total = zeros.new_zeros(block.size, block.size) if moment.total is None else moment.total
            total = torch.zeros_like(total) if _vanishes(total.trace(), moment.size) else total
            values, vectors = _eigen(total / examples, block, known)
            found[block.name] = Factors(values, vectors)
        else:
            rows, columns = block.shape
            out = zeros.new_zeros(rows, rows) if moment.out is None else moment.out
            inputs = zeros.new_zeros(columns, columns) if moment.inputs is None else moment.inputs
            tokens = max(moment.tokens, 1)
            out_values, out_basis = _eigen(_mirrored(out) / tokens, block, known)
            in_values, in_basis = _eigen(_mirrored(inputs) / tokens, block, known)
            share = moment.tokens / examples
            found[block.name] = Factors(zeros, out_basis, in_basis, out_values, in_values, share)
            moment.out = moment.inputs = None
    return found


def _eigen(
    matrix: Tensor, block: Block, known: list[tuple[Tensor, tuple[Tensor, Tensor]]]
) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below 0, and eigenvectors in columns, found in float64; once for equal matrices."""
    for other, result in known:
        if other.shape == matrix.shape and torch.equal(other, matrix):
            return result
    values, vectors = torch.linalg.eigh(_finite(matrix, block).double())
    result = values.clamp_min(0).to(matrix.dtype), vectors.to(matrix.dtype).contiguous()
    known.append((matrix, result))
    return result


def _mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of which the upper half is given."""
    return upper.triu() + upper.triu(1).T


def _finite(values: Tensor, block: Block) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"the gradients of {block.name} are not finite; are the model's losses?")
    return values


def _zeros(block: Block, trace: Tracer) -> Tensor:
    parameter = trace.parameters[block.parameters[0]]
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros(block.shape, dtype=wide, device=parameter.device)


# ------------------------------------------------------------------------------ the second pass


class Rotation:
    """Gradients in the eigenbases, Q_Sᵀ G_i Q_A; of one batch, since inputs that layers share are rotated
    once."""

    def __init__(self, factors: Mapping[str, Factors]) -> None:
        self.factors = factors
        self._known: dict[Any, tuple[Tensor, Tensor]] = {}

    def __call__(self, block: Block, traced: Traced) -> Outer:
        (outer,) = merged(traced.pieces[block.parameters[0]])
        assert isinstance(outer, Outer)
        factor = self.factors[block.name]
        assert factor.out_basis is not None
        assert factor.in_basis is not None
        left = self._rotated(outer.left, factor.out_basis, block.ones == "left")
        return Outer(left, self._rotated(outer.right, factor.in_basis, block.ones == "right"), outer.mask)

    def _rotated(self, values: Tensor, basis: Tensor, ones: bool) -> Tensor:
        """[example, token, feature] times the basis; with ``ones``, a last feature of 1 is understood."""
        key = _place(values), id(basis)
        if key not in self._known:  # kept with the values, so that no others come to lie where they lay
            flat = values.flatten(0, 1)
            rotated = torch.addmm(basis[-1], flat, basis[:-1]) if ones else flat @ basis
            self._known[key] = values, rotated.unflatten(0, values.shape[:2])
        return self._known[key][1]


_CACHED = 150_000
"""Numbers of a matrix that is made, squared and forgotten, which stays in a processor's cache."""


def _add_squares(total: Tensor, rotated: Outer) -> None:
    """Λ += Σ_i (Σ_t g_t a_tᵀ)², entry by entry."""
    if rotated.shape[1] == 1:
        total.addmm_(rotated.left[:, 0].square().T, rotated.right[:, 0].square())
        return
    height = max(96, _CACHED // total.shape[1])
    matrix = torch.empty_like(total[:height])
    for start in range(0, len(total), height):
        part = total[start : start + height]
        for left, right in zip(rotated.left[..., start : start + height], rotated.right, strict=True):
            part.addcmul_(*[torch.mm(left.T, right, out=matrix[: len(part)])] * 2)
