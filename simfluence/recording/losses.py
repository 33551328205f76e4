"""Losses of single examples, for models that take batches of features and return logits.

loss = model_loss(collate)                  # chooses by what the model returns:
  logits [batch, class]                     cross entropy; "accuracy" and "margin" on demand
  logits [batch, token, vocabulary]         mean cross entropy over the target tokens, labels ≠ -100;
                                            shifted by one, unless the model is an encoder-decoder
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from simfluence.recording.evaluator import LossFunction
from simfluence.recording.wrappers import plain_model

IGNORED = -100
"""The label of tokens that are no target."""

Metric = Literal["accuracy", "margin"]


def model_loss(
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    *,
    metrics: Sequence[Metric] = (),
    features: Sequence[str] | None = None,
) -> LossFunction:
    """The per-example loss of a model that is called with a batch of features and labels.

    Parameters
    ----------
    collate : list of features → batch with "labels" (a transformers data collator).
    metrics : "accuracy" (share of targets predicted right) and "margin" (the target's logit minus the
        largest other one, its mean over target tokens), recorded beside the loss.
    features : which fields of an example to collate; by default those that the model's ``forward``
        takes, and the labels.

    Raises
    ------
    ValueError, when called: a batch without labels, or an example without a target token.
    """
    if unknown := set(metrics) - {"accuracy", "margin"}:
        raise ValueError(f"metrics are 'accuracy' and 'margin', got {sorted(unknown)}")

    def loss(model: Any, examples: list[Any]) -> Tensor | dict[str, Tensor]:
        names = set(features) if features is not None else _accepted(model)
        batch = dict(collate([{key: e[key] for key in e if key in names} for e in examples]))
        labels = batch.get("labels")
        if labels is None:
            raise ValueError(f"the collated test examples have no 'labels', only {sorted(batch)}")
        device = next(model.parameters()).device
        batch = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()}
        found = model(**batch)
        logits = found["logits"] if isinstance(found, Mapping) or hasattr(found, "logits") else found
        is_decoder_only = not getattr(
            getattr(plain_model(model), "config", None), "is_encoder_decoder", False
        )
        if logits.ndim == 3 and is_decoder_only and batch["labels"].shape == logits.shape[:2]:
            values = token_metrics(logits[:, :-1], batch["labels"][:, 1:])
        elif logits.ndim == 3:
            values = token_metrics(logits, batch["labels"])
        else:
            values = token_metrics(logits[:, None], batch["labels"].reshape(-1, 1))
        return {"loss": values["loss"], **{name: values[name] for name in metrics}}

    return loss


def token_metrics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """logits [batch, token, vocabulary], labels [batch, token] → loss, accuracy and margin, each [batch].

    Means over each example's target tokens (labels ≠ -100), in float32.
    """
    logits = logits.float()
    is_target = labels != IGNORED
    counts = is_target.sum(1)
    if (counts == 0).any():
        raise ValueError(f"a test example has no target token (all its labels are {IGNORED})")
    gold = labels.clamp_min(0)
    per_token = functional.cross_entropy(logits.transpose(1, 2), gold, reduction="none")
    gold_logit = logits.gather(2, gold[..., None])
    others = logits.scatter(2, gold[..., None], float("-inf")).amax(2)
    tokens = {
        "loss": per_token,
        "accuracy": (logits.argmax(2) == gold).float(),
        "margin": gold_logit[..., 0] - others,
    }
    return {name: torch.where(is_target, v, 0.0).sum(1) / counts for name, v in tokens.items()}


def _accepted(model: Any) -> set[str]:
    model = plain_model(model)
    forward = inspect.signature(plain_model(getattr(model, "get_base_model", lambda: model)()).forward)
    return {*forward.parameters, "label", "label_ids", "labels"}
