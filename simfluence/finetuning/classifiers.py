"""Pretrained text encoders with a small head that scores labels.

The model takes examples, not tensors, so that tokens (and, where the lower layers are frozen, their
outputs) are computed once per example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from simfluence.finetuning.metrics import answer_metrics
from simfluence.finetuning.tasks import TextExample

Inputs: TypeAlias = tuple[tuple[str, str], ...]
"""The pairs of texts of an example (``TextExample.inputs``)."""

_NEVER = -1e4
"""The score of an option that there is not; its probability is exactly 0, also in half precision."""


class TextClassifier(nn.Module):
    """An encoder, pooled, with a linear head: one score an option, or one a class.

    Parameters
    ----------
    encoder : a Hugging Face encoder, whose output has ``last_hidden_state`` [sequence, token, hidden].
    n_outputs : 1 for choices, the number of classes for a classification.
    pooling : "mean" over tokens, or the first token ("cls").
    max_length : tokens of a pair; longer ones are cut.
    seed : of the head's initial weights.
    """

    encoder: Any

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        n_outputs: int,
        *,
        pooling: Literal["mean", "cls"] = "mean",
        max_length: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls', got {pooling!r}")
        self.encoder = encoder
        self.n_outputs = n_outputs
        self.pooling = pooling
        self.max_length = max_length
        self.frozen_layers = 0
        self._tokenizer = tokenizer
        self._tokens: dict[TextExample, dict[str, Tensor]] = {}
        self._lower: dict[TextExample, Tensor] = {}
        self.head = nn.Linear(self.encoder.config.hidden_size, n_outputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head.reset_parameters()

    # ------------------------------------------------------------------------- scores and losses

    def forward(self, examples: Sequence[TextExample]) -> Tensor:
        """Scores [example, label]; −inf for options that an example has fewer of."""
        scores = self.head(self.pooled(examples))
        if self.n_outputs > 1:
            return scores
        options = [len(example.inputs) for example in examples]
        rows = [pad(s, (0, max(options) - len(s)), value=-torch.inf) for s in scores[:, 0].split(options)]
        return torch.stack(rows)

    def pooled(self, examples: Sequence[TextExample]) -> Tensor:
        """What the head is given: pooled hidden states [sequence, hidden] of all pairs in turn."""
        hidden, mask = self._hidden(examples)
        if self.pooling == "cls":
            return hidden[:, 0]
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def losses(self, examples: Sequence[TextExample]) -> Tensor:
        """Cross-entropy of each example's right label, [example]."""
        return self._cross_entropy(self(examples), examples)

    def metrics(self, examples: Sequence[TextExample]) -> dict[str, Tensor]:
        """ "loss" as in :meth:`losses`, "accuracy" and "margin" of the scores, [example] each."""
        scores = self(examples)
        return {"loss": self._cross_entropy(scores, examples), **answer_metrics(scores, examples)}

    # ------------------------------------------------ as an objective (attribution/objective.py)

    @property
    def module(self) -> nn.Module:
        """Itself."""
        return self

    def outputs(self, examples: Sequence[TextExample]) -> Tensor:
        """Scores [example, label] as in :meth:`forward`, finite: missing options have a very low one."""
        scores = self(examples)
        return scores.masked_fill(scores.isneginf(), _NEVER)

    def output_losses(self, outputs: Tensor, examples: Sequence[TextExample]) -> Tensor:
        """:meth:`losses` as a function of the outputs, [example]."""
        return self._cross_entropy(outputs, examples)

    def sampled_losses(
        self, outputs: Tensor, examples: Sequence[TextExample], generator: torch.Generator
    ) -> Tensor:
        """The losses of labels drawn from the model's own distribution, [example]."""
        chances = outputs.detach().double().softmax(1)
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return cross_entropy(outputs, drawn, reduction="none")

    def rows(self, examples: Sequence[TextExample]) -> list[int]:
        """How many sequences each example is, [example]."""
        return [len(example.inputs) for example in examples]

    def masks(self, examples: Sequence[TextExample]) -> list[Tensor]:
        """Bool [sequence, token], False for padding; in a list of one."""
        tokens = [self._token_ids(example)["attention_mask"] for example in examples]
        longest = max(mask.shape[1] for mask in tokens)
        return [torch.cat([_padded(mask, longest) for mask in tokens]).bool()]

    def token_strings(self, example: TextExample) -> list[str]:
        """The tokens of all its sequences in turn, without padding."""
        tokens = self._token_ids(example)
        ids = tokens["input_ids"][tokens["attention_mask"].bool()]
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(ids.tolist())]

    def _cross_entropy(self, scores: Tensor, examples: Sequence[TextExample]) -> Tensor:
        labels = torch.tensor([example.label for example in examples], device=self.head.weight.device)
        return cross_entropy(scores, labels, reduction="none")

    def length(self, example: TextExample) -> int:
        """The number of tokens an example is padded from: what batches are sorted by."""
        return self._token_ids(example)["input_ids"].shape[1]

    def representations(self, examples: Sequence[TextExample]) -> Tensor:
        """What the head sees of each example, [example, hidden]; of a choice, of its right option."""
        pooled = self.pooled(examples)
        if self.n_outputs > 1:
            return pooled
        options = pooled.split([len(example.inputs) for example in examples])
        return torch.stack([rows[example.label] for rows, example in zip(options, examples, strict=True)])

    # --------------------------------------------------------------------------- hidden states

    @property
    def body(self) -> nn.Module:
        """What was pretrained: all but the head."""
        return self.encoder

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, lowest first. Raises ValueError if it is not built like BERT."""
        stack = getattr(getattr(self.encoder, "encoder", None), "layer", None)
        if stack is None or not hasattr(self.encoder, "embeddings"):
            raise ValueError(
                f"{type(self.encoder).__name__} has no .embeddings and .encoder.layer to freeze from below;"
                " tune it in full"
            )
        return stack

    def freeze_lower(self, layers: int) -> None:
        """Freeze the embeddings and the lowest layers; their outputs are computed once an example.

        Raises ValueError for more layers than there are, or an encoder that is not a stack of layers
        like BERT's.
        """
        stack = self.layers
        if not 0 <= layers <= len(stack):
            raise ValueError(f"can freeze 0 .. {len(stack)} of {len(stack)} layers, got {layers}")
        self.frozen_layers = layers
        self._lower.clear()
        for module in (self.encoder.embeddings, *stack[:layers]):
            module.requires_grad_(False)
            module.eval()

    def train(self, mode: bool = True) -> TextClassifier:
        """As always; but frozen layers stay in eval mode, since their outputs are kept."""
        super().train(mode)
        if self.frozen_layers:
            self.encoder.embeddings.eval()
            self.encoder.encoder.layer[: self.frozen_layers].eval()
        return self

    def _hidden(self, examples: Sequence[TextExample]) -> tuple[Tensor, Tensor]:
        """Hidden states [sequence, token, hidden] and mask [sequence, token] of all pairs in turn."""
        tokens = [self._token_ids(example) for example in examples]
        longest = max(token["input_ids"].shape[1] for token in tokens)
        mask = torch.cat([_padded(token["attention_mask"], longest) for token in tokens])
        if not self.frozen_layers:
            inputs = {key: torch.cat([_padded(t[key], longest) for t in tokens]) for key in tokens[0]}
            return self.encoder(**inputs).last_hidden_state, mask.float()
        lower = torch.cat([_padded(self._lower_output(example), longest) for example in examples])
        return self._run_layers(lower, mask, from_layer=self.frozen_layers), mask.float()

    @torch.no_grad()
    def _lower_output(self, example: TextExample) -> Tensor:
        """The frozen layers' output for one example, [option, token, hidden]; computed once."""
        if example not in self._lower:
            tokens = self._token_ids(example)
            embedded = self.encoder.embeddings(
                input_ids=tokens["input_ids"], token_type_ids=tokens.get("token_type_ids")
            )
            self._lower[example] = self._run_layers(
                embedded, tokens["attention_mask"], to_layer=self.frozen_layers
            )
        return self._lower[example]

    def _run_layers(
        self, hidden: Tensor, mask: Tensor, from_layer: int = 0, to_layer: int | None = None
    ) -> Tensor:
        additive = None
        if not bool(mask.all()):
            additive = (1 - mask[:, None, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in self.encoder.encoder.layer[from_layer:to_layer]:
            output = layer(hidden, additive)
            hidden = output if isinstance(output, Tensor) else output[0]
        return hidden

    def _token_ids(self, example: TextExample) -> dict[str, Tensor]:
        """Token tensors [option, token] of one example, on the model's device; computed once."""
        if example not in self._tokens:
            first, second = zip(*example.inputs, strict=True)
            encoded = self._tokenizer(
                list(first),
                list(second) if any(second) else None,
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            device = self.head.weight.device
            self._tokens[example] = {key: value.to(device) for key, value in encoded.items()}
        return self._tokens[example]


def _padded(values: Tensor, length: int) -> Tensor:
    """[option, token, …] with zeros up to ``length`` tokens."""
    missing = length - values.shape[1]
    return pad(values, (0, 0) * (values.ndim - 2) + (0, missing)) if missing else values
