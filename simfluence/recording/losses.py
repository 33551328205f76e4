"""Losses of single examples, for models that are called with batches of features and labels.

A model of transformers returns its own loss, a mean over the batch. ``model_loss(collate)`` finds out which
of these forms it has, by calling the model on a few single examples:

    classes      logits [batch, class], labels [batch]: cross entropy
    tokens       logits [batch, token, vocabulary], labels [batch, token]: mean cross entropy over the target
                 tokens, labels ≠ -100
    next tokens  the same, where the label of token t + 1 is predicted at t
    regression   logits and labels [batch, output]: mean squared error over outputs
    multi-label  logits and labels [batch, label]: mean binary cross entropy over labels

Of a loss of no such form, each example's is the model's own, from a call for the example alone. So it is
where the collator lays all examples end to end in one sequence (padding-free).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from simfluence.recording.evaluator import LossFunction, undisturbed
from simfluence.recording.wrappers import called_module, plain_model

IGNORED = -100
"""The label of tokens that are no target."""

Metric = Literal["accuracy", "margin"]
Form = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(logits, labels) → "loss" and, of classes, "accuracy" and "margin", each [batch]. Raises ValueError,
IndexError or RuntimeError for shapes and types that are not of this form."""

_TRIED = 4  # single examples that the model's own loss is asked for
_HINT = "pass loss=, a function (model, examples) → loss of each"


def model_loss(
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    *,
    metrics: Sequence[Metric] = (),
    features: Sequence[str] | None = None,
) -> LossFunction:
    """The per-example loss of a model that is called with a batch of features and labels.

    Parameters
    ----------
    collate : list of features → batch (a transformers data collator).
    metrics : "accuracy" (share of targets predicted right) and "margin" (the target's logit minus the
        largest other one, its mean over target tokens), recorded beside the loss.
    features : which fields of an example to collate; by default those that the model's ``forward``
        takes, and the labels.

    Raises
    ------
    ValueError, when called: labels that are no classes of the model, an example without a target token, a
        model that returns no loss of its own and whose logits may be meant in several ways, or metrics of a
        loss that is not of classes.
    """
    if unknown := set(metrics) - {"accuracy", "margin"}:
        raise ValueError(f"metrics are 'accuracy' and 'margin', got {sorted(unknown)}")
    forms: WeakKeyDictionary[Any, Form | None] = WeakKeyDictionary()

    def loss(model: Any, examples: list[Any]) -> Tensor | dict[str, Tensor]:
        names = set(features) if features is not None else _accepted(model)

        def collated(some: list[Any]) -> Mapping[str, Tensor]:
            return collate([{key: e[key] for key in e if key in names} for e in some])

        def call(some: list[Any]) -> _Output:
            return _called(model, collated(some))

        key = plain_model(model)
        if key not in forms:
            with undisturbed(model), torch.no_grad():
                forms[key] = _form_of([call([example]) for example in examples[:_TRIED]])
        form = forms[key]
        if form is None:
            if metrics:
                raise ValueError(f"the model has a loss of its own, without {' and '.join(metrics)}; {_HINT}")
            return {"loss": torch.stack([call([example]).own_loss() for example in examples])}
        batch = collated(examples)
        if len(examples) > 1 and _is_end_to_end(batch):
            outputs = [call([example]) for example in examples]
            parts = [form(output.logits, output.labels) for output in outputs]
            values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        else:
            output = _called(model, batch)
            values = form(output.logits, output.labels)
        if missing := [name for name in metrics if name not in values]:
            raise ValueError(f"{missing[0]} is of classes, and the model predicts numbers; {_HINT}")
        return {"loss": values["loss"], **{name: values[name] for name in metrics}}

    return loss


def _is_end_to_end(batch: Mapping[str, Any]) -> bool:
    """Whether a batch of several examples is one sequence."""
    ids = batch.get("input_ids")
    return isinstance(ids, Tensor) and ids.ndim == 2 and len(ids) == 1


@dataclass(frozen=True)
class _Output:
    """What a model returned for a batch; ``labels`` are the batch's, ``own`` its loss."""

    own: Tensor | None
    logits: Any
    labels: Any

    def own_loss(self) -> Tensor:
        if self.own is None:
            raise ValueError(f"the model returned no loss; {_HINT}")
        return self.own.float().mean()


def _called(model: Any, collated: Mapping[str, Any]) -> _Output:
    device = next(model.parameters()).device
    batch = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in collated.items()}
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.numel():
        wrong = labels[(labels < 0) & (labels != IGNORED)]
        if len(wrong):
            raise ValueError(f"a test example has the label {int(wrong[0])}, which is no class; {_HINT}")
        if bool((labels == IGNORED).reshape(len(labels), -1).all(1).any()):
            raise ValueError(f"a test example has no target token (all its labels are {IGNORED})")
    try:
        found = model(**batch)
    except IndexError as error:
        raise ValueError(f"the model does not take these inputs and labels ({error}); {_HINT}") from error
    if isinstance(found, tuple):  # return_dict=False
        has_loss = len(found) > 1 and isinstance(found[0], Tensor) and found[0].ndim == 0
        return _Output(found[0], found[1], labels) if has_loss else _Output(None, found[0], labels)
    if isinstance(found, Mapping) or hasattr(found, "logits"):
        found = found if isinstance(found, Mapping) else vars(found)
        return _Output(found.get("loss"), found.get("logits"), labels)
    return _Output(None, found, labels)


def _form_of(alone: Sequence[_Output]) -> Form | None:
    """The form whose losses are the model's own, of examples that it was given alone; None: no such one."""
    if any(output.own is None for output in alone):
        return _unchecked_form(alone[0])
    fitting: list[tuple[float, Form]] = []
    for form in (_classes, token_metrics, _next_tokens, _regression, _multi_label):
        try:
            errors = [_relative_error(form(o.logits, o.labels)["loss"], o.own_loss()) for o in alone]
        except (ValueError, TypeError, AttributeError, IndexError, RuntimeError):
            continue
        if max(errors) < (1e-3 if alone[0].logits.dtype.itemsize >= 4 else 2e-2):
            fitting.append((sum(errors), form))
    return min(fitting, key=lambda each: each[0])[1] if fitting else None


def _unchecked_form(output: _Output) -> Form:
    """The form of a model that returns no loss. Raises ValueError if it may be several."""
    if not isinstance(output.labels, Tensor):
        raise ValueError(
            f"the collated test examples have no 'labels' and the model returned no loss; {_HINT}"
        )
    is_of_classes = not output.labels.is_floating_point() and output.labels.numel() == len(output.labels)
    if not isinstance(output.logits, Tensor) or output.logits.ndim != 2 or not is_of_classes:
        raise ValueError(
            f"the model returned no loss, and logits that may be meant in several ways (labels"
            f" {tuple(output.labels.shape)}); {_HINT}"
        )
    return _classes


def _relative_error(found: Tensor, own: Tensor) -> float:
    return float((found.mean() - own).abs() / own.abs().clamp_min(1e-3))


def _classes(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    if logits.ndim != 2 or labels.is_floating_point() or labels.numel() != len(logits):
        raise ValueError(f"no classes: logits {tuple(logits.shape)}, labels {tuple(labels.shape)}")
    return token_metrics(logits[:, None], labels.reshape(-1, 1))


def _next_tokens(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return token_metrics(logits[:, :-1], labels[:, 1:])


def _regression(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    outputs = logits.reshape(len(labels), -1).float()
    return {"loss": (outputs - labels.reshape(outputs.shape).float()).square().mean(1)}


def _multi_label(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    targets = labels.reshape(logits.shape).float()
    values = functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return {"loss": values.flatten(1).mean(1)}


def token_metrics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """logits [batch, token, vocabulary], labels [batch, token] → loss, accuracy and margin, each [batch].

    Means over each example's target tokens (labels ≠ -100), in float32 at least.

    Raises ValueError for an example without a target token, and labels that are not in 0 .. vocabulary − 1.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2] or labels.is_floating_point():
        raise ValueError(f"no tokens: logits {tuple(logits.shape)}, labels {tuple(labels.shape)}")
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    is_target = labels != IGNORED
    counts = is_target.sum(1)
    if (counts == 0).any():
        raise ValueError(f"a test example has no target token (all its labels are {IGNORED})")
    if bool((is_target & ((labels < 0) | (labels >= logits.shape[2]))).any()):
        raise ValueError(f"labels must be {IGNORED} or in 0 .. {logits.shape[2] - 1}, got {labels.tolist()}")
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
    model = called_module(model)
    forward = inspect.signature(called_module(getattr(model, "get_base_model", lambda: model)()).forward)
    return {*forward.parameters, "label", "label_ids", "labels"}
