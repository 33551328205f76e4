"""Losses of single preference pairs, as TRL's ``DPOTrainer`` and ``RewardTrainer`` train on them.

    DPO      L = −log σ(m),      m = β [log π(c)/π₀(c) − log π(r)/π₀(r)]
    reward   L = −log σ(m − d) + k (R(c) + R(r))²,      m = R(c) − R(r)

Of a pair, c is the chosen and r the rejected completion. log π is the log-probability of a completion's
tokens under the model, and log π₀ the same under the reference model (Rafailov et al. 2023, equation 7). R is
the reward that a model gives (Ouyang et al. 2022, equation 1), d the pair's own "margin", if it has one, and
k the trainer's ``center_rewards_coefficient``. Beside the loss, ``margin`` is m, and ``accuracy`` is 1 where
m > 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from simfluence.recording.evaluator import LossFunction, undisturbed
from simfluence.recording.wrappers import evaluated_model

_HINT = "pass loss=, a function (model, pairs) → loss of each"
_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


def preference_loss(trainer: Any) -> LossFunction | None:
    """The loss, accuracy and margin of each pair, for a ``DPOTrainer`` or ``RewardTrainer``; None for others.

    The pairs are rows of the trainer's data sets, which it has tokenized. The reference's log-probabilities
    are computed once for each pair: by the trainer's reference model; or with the adapter switched off, if
    the trainer has no such model. Where the trainer has computed them before, they are taken from its rows.

    Raises
    ------
    ValueError : a loss of DPO other than the sigmoid one, or a reference that changes in training. When
        called: pairs that are not tokenized, or that have no reference.
    """
    kinds = {kind.__name__ for kind in type(trainer).__mro__}
    if "DPOTrainer" in kinds:
        _check_sigmoid(trainer.args)
        return _DirectPreference(trainer)
    return _Reward(trainer) if "RewardTrainer" in kinds else None


class _DirectPreference:
    """The sigmoid loss of DPO."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._known: dict[bytes, tuple[float, float]] = {}  # pair → log π₀ of chosen and rejected

    def __call__(self, model: Any, pairs: list[Any]) -> dict[str, Tensor]:
        batch = _collated(self._trainer, model, pairs)
        own, reference = _log_probabilities(model, batch), self._reference(model, pairs, batch)
        ratios = own - reference.to(own)
        margin = self._trainer.args.beta * (ratios[:, 0] - ratios[:, 1])
        return _metrics(-functional.logsigmoid(margin), margin)

    def _reference(self, model: Any, pairs: list[Any], batch: Mapping[str, Tensor]) -> Tensor:
        """log π₀ [pair, chosen or rejected]."""
        if "ref_chosen_logps" in pairs[0]:
            return torch.tensor([[pair["ref_chosen_logps"], pair["ref_rejected_logps"]] for pair in pairs])
        keys = [_digest(pair) for pair in pairs]
        if any(key not in self._known for key in keys):
            with _reference_of(self._trainer, model) as reference, undisturbed(reference), torch.no_grad():
                found = _log_probabilities(reference, batch)
            self._known.update(zip(keys, map(tuple, found.tolist()), strict=True))
        return torch.tensor([self._known[key] for key in keys])


class _Reward:
    """The loss of reward models."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __call__(self, model: Any, pairs: list[Any]) -> dict[str, Tensor]:
        batch = _collated(self._trainer, model, pairs)
        rewards = _wide(_logits(model, batch)).reshape(len(pairs), 2)
        margin = rewards[:, 0] - rewards[:, 1]
        loss = -functional.logsigmoid(margin - batch.get("margin", 0.0))
        if (coefficient := self._trainer.args.center_rewards_coefficient) is not None:
            loss = loss + coefficient * rewards.sum(1).square()
        return _metrics(loss, margin)


def _metrics(loss: Tensor, margin: Tensor) -> dict[str, Tensor]:
    return {"loss": loss, "accuracy": (margin.detach() > 0).float(), "margin": margin.detach()}


def _log_probabilities(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Of the tokens of each completion, their sum, [pair, chosen or rejected]."""
    ids, logits = batch["input_ids"], _wide(_logits(model, batch))
    of_tokens = -functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return (of_tokens * batch["completion_mask"][:, 1:]).sum(1).reshape(-1, 2)


def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits: Tensor = output.logits
    return logits


def _collated(trainer: Any, model: Any, pairs: Sequence[Any]) -> dict[str, Tensor]:
    """The trainer's batch, the two rows of a pair one after the other: chosen, rejected, chosen, …"""
    for pair in pairs:
        if not isinstance(pair, Mapping) or "chosen_ids" not in pair or "rejected_ids" not in pair:
            raise ValueError(
                "a pair has no tokens in 'chosen_ids' and 'rejected_ids': make the recorder with"
                " test=trainer.eval_dataset, whose pairs the trainer has tokenized; for pairs with images"
                f" {_HINT}"
            )
    device = next(model.parameters()).device
    batch = {name: values.to(device) for name, values in trainer.data_collator(list(pairs)).items()}
    in_pairs = torch.arange(2 * len(pairs), device=device).reshape(2, -1).T.flatten()
    return {n: v[in_pairs] if len(v) == 2 * len(pairs) else v for n, v in batch.items()}


@contextmanager
def _reference_of(trainer: Any, model: Any) -> Iterator[Any]:
    """The reference model. One that is the model itself without its adapter is so inside only."""
    if trainer.ref_model is not None:
        yield evaluated_model(trainer.ref_model)
        return
    if not hasattr(model, "disable_adapter"):
        raise ValueError(
            "a pair has no log-probabilities of the reference, whose model the trainer does not have"
            f" (precompute_ref_log_probs=True): make the recorder with test=trainer.eval_dataset, or {_HINT}"
        )
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with ExitStack() as stack:
            if "ref" in model.peft_config:  # the adapter as it was when the trainer was made
                stack.callback(model.set_adapter, model.active_adapter)
                model.set_adapter("ref")
            else:
                stack.enter_context(model.disable_adapter())
            yield model
    finally:  # which peft has set anew
        for parameter, was_trained in trained:
            parameter.requires_grad_(was_trained)


def _digest(pair: Mapping[str, Any]) -> bytes:
    """A hash of a pair's tokens."""
    lists = [np.asarray(pair.get(name, ()), np.int64) for name in _TOKENS]
    lengths = np.array([len(tokens) for tokens in lists])
    return hashlib.blake2b(np.concatenate([lengths, *lists]).tobytes(), digest_size=16).digest()


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype.itemsize >= 4 else values.float()


def _check_sigmoid(args: Any) -> None:
    """Raises ValueError for a loss that is not DPO's sigmoid loss against a fixed reference."""
    wanted = {
        "loss_type": ["sigmoid"],
        "loss_weights": None,
        "f_divergence_type": "reverse_kl",
        "ld_alpha": None,
        "use_weighting": False,
        "sync_ref_model": False,
    }
    for name, value in wanted.items():
        given = getattr(args, name, value)
        if given != value:
            raise ValueError(
                f"of DPO, losses of single pairs are known for {name}={value!r}, and this trainer has"
                f" {given!r}; {_HINT}"
            )
