"""LoRA and IA3: small modules that peft puts beside the pretrained weights, which stay as they are.

Suffixes of the modules' names within a layer choose where they go: "output.dense" is the end of BERT's
feed-forward block, but not "attention.output.dense", which peft's own matching would choose too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from simfluence.errors import RunDataError

LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("query", "value"),
    "gpt2": ("attn.c_attn",),
    "llama": ("q_proj", "v_proj"),
    "t5": ("SelfAttention.q", "SelfAttention.v", "EncDecAttention.q", "EncDecAttention.v"),
}
"""The kind of model, as its configuration calls it → the linear maps that get a low-rank update."""

IA3_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("key", "value", "intermediate.dense"),
    "gpt2": ("attn.c_attn", "mlp.c_proj"),
    "llama": ("k_proj", "v_proj", "down_proj"),
    "t5": (
        "SelfAttention.k", "SelfAttention.v", "EncDecAttention.k", "EncDecAttention.v", "DenseReluDense.wo",
    ),
}  # fmt: skip
"""… → the linear maps whose outputs (in a feed-forward block: inputs) are rescaled."""

FEED_FORWARD = ("intermediate.dense", "mlp.c_proj", "down_proj", "DenseReluDense.wo")


class Adaptable(Protocol):
    """What adapters ask of a model."""

    @property
    def body(self) -> nn.Module:
        """The pretrained part, with a Hugging Face ``config``."""

    @property
    def layers(self) -> nn.ModuleList:
        """Its layers that can be frozen from below."""


def add_lora(
    model: Adaptable,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    layers: int | None = None,
    seed: int = 0,
) -> None:
    """Low-rank updates W + (alpha / rank) B A of the target maps; B starts at zero.

    Parameters
    ----------
    targets : suffixes of module names; by default those of ``LORA_TARGETS``.
    layers : only in the last so many; None: in all.
    seed : of A's initial values.
    """
    peft = _peft()
    names = target_names(model, targets or _default(model, LORA_TARGETS), layers)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, fan_in_fan_out=_conv1d(model)
    )
    _inject(model, settings, seed)


def add_ia3(model: Adaptable, *, targets: Sequence[str] | None = None, layers: int | None = None) -> None:
    """A learnt scale, one at first, for every output of the target maps, or input in a feed-forward block.

    Parameters
    ----------
    targets : suffixes of module names; by default those of ``IA3_TARGETS``.
    layers : only in the last so many; None: in all.
    """
    peft = _peft()
    names = target_names(model, targets or _default(model, IA3_TARGETS), layers)
    settings = peft.IA3Config(
        target_modules=names,
        feedforward_modules=[name for name in names if name.endswith(FEED_FORWARD)],
        fan_in_fan_out=_conv1d(model),
    )
    _inject(model, settings, seed=0)


def target_names(model: Adaptable, targets: Sequence[str], layers: int | None = None) -> list[str]:
    """Full names, within the body, of the maps that these suffixes mean.

    Raises ValueError for a suffix that no module has, or more layers than there are.
    """
    stack = model.layers
    if layers is not None and not 1 <= layers <= len(stack):
        raise ValueError(f"the model has {len(stack)} layers; cannot adapt the last {layers}")
    within = None if layers is None else {id(m) for layer in stack[-layers:] for m in layer.modules()}
    found: list[str] = []
    for target in targets:
        named = [
            name
            for name, module in model.body.named_modules()
            if _means(name, target) and hasattr(module, "weight") and (within is None or id(module) in within)
        ]
        if not named:
            raise ValueError(f"no module of {type(model.body).__name__} is named …{target}")
        found += named
    return list(dict.fromkeys(found))


def _means(name: str, target: str) -> bool:
    """Whether the module's name ends in the target, "attention.output" set apart from "output"."""
    if not f".{name}".endswith(f".{target}"):
        return False
    return "attention" in target or not name.endswith(f"attention.{target}") or "." not in target


def _default(model: Adaptable, targets: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    kind = str(model.body.config.model_type)  # type: ignore[union-attr]
    if kind not in targets:
        raise ValueError(
            f"where adapters go in a {kind!r} model is known for {', '.join(targets)}; give tuning.targets"
        )
    return targets[kind]


def _conv1d(model: Adaptable) -> bool:
    """Whether the linear maps keep their weights the other way round, as GPT-2's do."""
    return any(type(module).__name__ == "Conv1D" for module in model.body.modules())


def _inject(model: Adaptable, settings: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _peft().inject_adapter_in_model(settings, model.body)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise RunDataError("LoRA and IA3 take `pip install 'simfluence[text]'`") from None
    return peft
