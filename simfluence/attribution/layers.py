"""The gradients of a module's parameters, from its inputs and the gradients of its outputs.

    linear map  y = W a + b       ∂W = Σ_t g_t a_tᵀ          ∂b = Σ_t g_t
    embedding   y = W[r]          ∂W[r] = Σ_t g_t
    norm        y = w ∘ x̂ + b     ∂w = Σ_t g_t ∘ x̂_t         ∂b = Σ_t g_t
    IA3         y = s ∘ (W x)     ∂s = Σ_t g_t ∘ (W x)_t      (feed-forward: y = W (s ∘ x))

g_t is the gradient of the loss with respect to y at token t. To add a kind of layer: a ``Kind``, and a line
in ``kind_of``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simfluence.attribution.gradient_parts import GradientPart, Outer, Rows, Summed


@dataclass(frozen=True)
class Kind:
    """How the gradients of one kind of module are computed.

    parameters : names of the parameters that this kind covers.
    seen : (module, inputs, output) → what the formulas above need besides g: a linear map's input, the ids
        that were looked up, or the normalised input.
    parts : (module, seen [example, token, …], g [example, token, out]) → parameter's name → gradient part.
    """

    parameters: tuple[str, ...]
    seen: Callable[[Any, tuple[Any, ...], Tensor], Tensor]
    parts: Callable[[Any, Tensor, Tensor], dict[str, GradientPart]]


def _linear(module: Any, inputs: Tensor, g: Tensor) -> dict[str, GradientPart]:
    return {"weight": Outer(g, inputs), "bias": Summed(g)}


def _conv1d(module: Any, inputs: Tensor, g: Tensor) -> dict[str, GradientPart]:
    return {"weight": Outer(inputs, g), "bias": Summed(g)}


def _embedding(module: nn.Embedding, ids: Tensor, g: Tensor) -> dict[str, GradientPart]:
    ids = ids[..., 0]
    if module.padding_idx is not None:
        g = g * (ids != module.padding_idx)[..., None]
    return {"weight": Rows(ids, g, module.num_embeddings)}


def _scaled(module: Any, normed: Tensor, g: Tensor) -> dict[str, GradientPart]:
    return {"weight": Summed(normed * g), "bias": Summed(g)}


def _layer_norm(module: nn.LayerNorm, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    wide = inputs[0].detach().to(wide_type(inputs[0]))
    return torch.nn.functional.layer_norm(wide, module.normalized_shape, eps=module.eps)


def _rms_norm(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """x̂, as the module itself computes it: implementations differ, all are linear in the weight."""
    ones, zeros = ({"weight": make(module.weight)} for make in (torch.ones_like, torch.zeros_like))
    with torch.no_grad():
        call = torch.func.functional_call
        normed: Tensor = call(module, ones, inputs) - call(module, zeros, inputs)
    return normed


def _input(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return inputs[0].detach()


def _ia3_input(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The values that IA3 scales: a feed-forward block's input, otherwise the output of the map under it."""
    with torch.no_grad():
        scaled: Tensor = inputs[0] if module.is_feedforward else module.base_layer(inputs[0])
    return scaled.detach()


def _ia3(module: Any, scaled: Tensor, g: Tensor) -> dict[str, GradientPart]:
    if module.is_feedforward:
        weight = module.get_base_layer().weight.detach().to(g.dtype)
        g = g @ (weight.T if _is_conv1d(module.base_layer) else weight)
    (name,) = module.ia3_l
    vector = module.ia3_l[name]
    return {f"ia3_l.{name}": Summed((g * scaled)[..., None].reshape(*g.shape[:2], *vector.shape))}


LINEAR = Kind(("weight", "bias"), _input, _linear)
CONV1D = Kind(("weight", "bias"), _input, _conv1d)
EMBEDDING = Kind(("weight",), lambda m, inputs, output: inputs[0].detach()[..., None], _embedding)
LAYER_NORM = Kind(("weight", "bias"), _layer_norm, _scaled)
RMS_NORM = Kind(("weight",), _rms_norm, _scaled)
IA3 = Kind(("ia3_l.",), _ia3_input, _ia3)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module, None if no kind fits. The tracer checks each kind before it relies on it."""
    if hasattr(module, "ia3_l"):
        return IA3 if len(module.ia3_l) == 1 and hasattr(module, "is_feedforward") else None  # type: ignore[arg-type]
    if isinstance(module, nn.Linear):
        return LINEAR
    if _is_conv1d(module):
        return CONV1D
    if isinstance(module, nn.Embedding):
        return None if module.scale_grad_by_freq else EMBEDDING
    if isinstance(module, nn.LayerNorm):
        return LAYER_NORM if len(module.normalized_shape) == 1 else None
    if type(module).__name__.endswith("RMSNorm") or type(module).__name__ == "T5LayerNorm":
        return RMS_NORM
    return None


def _is_conv1d(module: nn.Module) -> bool:
    """transformers' linear map with its weight [in, out], as GPT-2 has it."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def wide_type(value: Tensor) -> torch.dtype:
    """The type of a tensor, or float32 if that is narrower."""
    return value.dtype if value.dtype.itemsize >= 4 else torch.float32
