"""Products with the Gauss-Newton matrix, without the matrix.

    G = (1/N) Σ_i J_iᵀ H_i J_i      J_i = ∂h_i/∂θ [output, parameter],   H_i = ∂²L_i/∂h_i² [output, output]

h_i are the outputs of example i and L_i its loss. G is the Hessian of the mean loss where h is linear in θ,
and positive semi-definite where L is convex in h. Only ``outputs`` and ``output_losses`` of an objective are
used. J v is computed as the derivative by u of Jᵀu, which is linear in u ("double backward"), since not every
layer has forward-mode derivatives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import dense_gradients, requiring_gradients, selected_parameters
from simfluence.recording.evaluator import undisturbed

_VALUES_AT_ONCE = 2**24
"""Outputs times vectors that one pass treats together."""


class GaussNewton:
    """The matrix G of an objective over examples, at the model's current weights, in eval mode.

    objective : its ``output_losses`` are differentiated twice by the outputs.
    parameters : as in :func:`.parameters.selected_parameters`.
    batch_size : examples in a pass; changes time and memory alone.

    Vectors are flat, in the order of ``selected_parameters``, and of the parameters' type.

    Raises ValueError for no examples, nothing to differentiate by, or parameters in half precision.
    """

    def __init__(
        self,
        objective: Objective,
        examples: Sequence[Any],
        *,
        parameters: Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> None:
        if not len(examples):
            raise ValueError("the Gauss-Newton matrix is a mean over examples: expected some, got none")
        self.objective = objective
        self.examples = examples
        self.parameters = selected_parameters(objective.module, parameters)
        self.batch_size = batch_size
        for name, parameter in self.parameters.items():
            if parameter.dtype.itemsize < 4:
                raise ValueError(
                    f"{name} is {parameter.dtype}: systems of equations need float32 or float64;"
                    " convert the model first, e.g. model.float()"
                )
        self.dtype = max((p.dtype for p in self.parameters.values()), key=lambda dtype: dtype.itemsize)
        self.device = next(iter(self.parameters.values())).device
        self._sizes = [parameter.numel() for parameter in self.parameters.values()]

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(self._sizes)

    def product(self, vectors: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """G v of each vector, [vector, parameter].

        rows : the examples that the mean is over; None: all.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise ValueError(f"expected vectors [vector, {self.size}], got shape {list(vectors.shape)}")
        chosen = range(len(self.examples)) if rows is None else rows
        total = torch.zeros_like(vectors)
        with self._ready():
            for start in range(0, len(chosen), self.batch_size):
                batch = [self.examples[row] for row in chosen[start : start + self.batch_size]]
                total += self._sum_over(batch, vectors)
        return total / len(chosen)

    def dense(self) -> Tensor:
        """G itself, [parameter, parameter]; for small models."""
        matrix = self.product(torch.eye(self.size, dtype=self.dtype, device=self.device))
        return (matrix + matrix.T) / 2

    def mean_eigenvalue(self, *, probes: int = 16, seed: int = 0) -> float:
        """tr G / parameters by Hutchinson's estimate, the mean of vᵀGv over random signs v."""
        signs = _random_signs((probes, self.size), seed).to(self.device, self.dtype)
        return float((signs * self.product(signs)).mean())

    def largest_eigenvalue(
        self, rows: Sequence[int] | None = None, *, iterations: int = 20, seed: int = 0
    ) -> float:
        """The largest eigenvalue by power iteration from a seeded start, never too large."""
        vector = _random_signs((1, self.size), seed).to(self.device, self.dtype)
        vector = vector / vector.norm()
        value = torch.zeros(())
        for _ in range(iterations):
            product = self.product(vector, rows)
            value = product.norm()
            if value == 0:
                break
            vector = product / value
        return float(value)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Eval mode; the parameters require gradients; attention that can be differentiated twice."""
        with (
            undisturbed(self.objective.module),
            requiring_gradients(self.parameters),
            dense_gradients(self.objective.module),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield

    def _sum_over(self, batch: Sequence[Any], vectors: Tensor) -> Tensor:
        """Σ_i J_iᵀ H_i J_i v over the examples of a batch, [vector, parameter]."""
        parameters = list(self.parameters.values())
        outputs = self.objective.outputs(batch)
        if not outputs.requires_grad:
            raise ValueError("the outputs do not depend on the chosen parameters: G is zero")
        direction = torch.zeros_like(outputs, requires_grad=True)  # u
        transposed = torch.autograd.grad(outputs, parameters, direction, create_graph=True, allow_unused=True)
        depends = [
            number for number, part in enumerate(transposed) if part is not None and part.requires_grad
        ]
        known = outputs.detach().requires_grad_()
        of_loss = torch.autograd.grad(
            self.objective.output_losses(known, batch).sum(), known, create_graph=True
        )[0]
        products = []
        for some in vectors.split(max(1, _VALUES_AT_ONCE // outputs.numel())):
            parts = some.split(self._sizes, 1)
            v = [parts[n].reshape(-1, *parameters[n].shape).to(parameters[n].dtype) for n in depends]
            (forward,) = _grads([transposed[n] for n in depends], [direction], v)  # J v
            curved = _grads([of_loss], [known], [forward])[0] if of_loss.requires_grad else 0 * forward
            back = _grads([outputs], [parameters[n] for n in depends], [curved])
            found = [torch.zeros_like(part) for part in parts]
            for n, part in zip(depends, back, strict=True):
                found[n] = part.flatten(1).to(vectors.dtype)
            products.append(torch.cat(found, 1))
        return torch.cat(products)


def _grads(outputs: list[Tensor], inputs: list[Any], vectors: list[Tensor]) -> tuple[Tensor, ...]:
    """Vector-Jacobian products, for all vectors at once where every layer can, else one by one."""
    options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
    if len(vectors[0]) > 1:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                return torch.autograd.grad(outputs, inputs, vectors, is_grads_batched=True, **options)
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise
    each = [torch.autograd.grad(outputs, inputs, list(v), **options) for v in zip(*vectors, strict=True)]
    return tuple(torch.stack(parts) for parts in zip(*each, strict=True))


def _random_signs(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, shape, generator=generator) * 2 - 1


def positive_damping(damping: float | None, mean_eigenvalue: Callable[[], float]) -> float:
    """The damping λ; None: a tenth of G's mean eigenvalue. Raises ValueError if it is not positive."""
    if damping is None:
        damping = 0.1 * mean_eigenvalue()
        if not damping > 0:
            raise ValueError(
                "the Gauss-Newton matrix is zero, so that a tenth of its mean eigenvalue is no damping: the"
                " losses have no curvature here; give damping"
            )
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    return float(damping)
