"""Language models that answer by the log-likelihood of each choice given the prompt.

    score(c) = (1/|c|) Σ_t log p(c_t | prompt, c_<t)

or the plain sum. The loss of an example is minus the score of its right answer, so that training sees the
right answers alone; the other choices matter for the accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simfluence.finetuning.metrics import answer_metrics
from simfluence.finetuning.tasks import TextExample

IGNORED = -100
"""Marks the tokens that are not scored, as everywhere in transformers."""


class LanguageModel(nn.Module):
    """A causal or sequence-to-sequence language model that scores the choices of examples.

    Parameters
    ----------
    lm : a Hugging Face model with ``logits`` [sequence, token, vocabulary] in its output.
    class_words : for classifications, a word for every class (the choices that are scored).
    per_token : scores are means over a choice's tokens; otherwise sums.
    max_length : tokens of prompt and choice together (of each, for a sequence-to-sequence model); longer
        prompts lose their beginning.
    """

    lm: Any
    frozen_layers = 0

    def __init__(
        self,
        lm: nn.Module,
        tokenizer: Any,
        *,
        class_words: Sequence[str] = (),
        per_token: bool = True,
        max_length: int = 128,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.seq2seq = bool(self.lm.config.is_encoder_decoder)
        self.class_words = tuple(class_words)
        self.per_token = per_token
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._tokens: dict[TextExample, list[tuple[Tensor, Tensor]]] = {}

    # ------------------------------------------------------------------------- scores and losses

    def forward(self, examples: Sequence[TextExample]) -> Tensor:
        """Scores [example, choice]; −inf for choices that an example has fewer of."""
        tokens = [self._token_ids(example) for example in examples]
        scores = self._log_likelihood([pair for choices in tokens for pair in choices])
        rows = scores.split([len(choices) for choices in tokens])
        return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf)

    def losses(self, examples: Sequence[TextExample]) -> Tensor:
        """Minus the log-likelihood of each example's right answer, [example], in nats (a token)."""
        return -self._log_likelihood(self._right_answers(examples))

    def metrics(self, examples: Sequence[TextExample]) -> dict[str, Tensor]:
        """ "loss" as in :meth:`losses`, "accuracy" and "margin" over all choices, [example] each."""
        scores = self(examples)
        labels = torch.tensor([example.label for example in examples], device=scores.device)[:, None]
        return {"loss": -scores.gather(1, labels)[:, 0], **answer_metrics(scores, examples)}

    def length(self, example: TextExample) -> int:
        """The number of tokens an example is padded from: what batches are sorted by."""
        return max(len(first) for first, _ in self._token_ids(example))

    def representations(self, examples: Sequence[TextExample]) -> Tensor:
        """The last hidden states of the right answer's sequence, a mean over its tokens, [example, hidden].

        Of a causal model over prompt and choice; of a decoder over the choice.
        """
        pairs = self._right_answers(examples)
        _, mask, scored = self._padded_pairs(pairs)
        output = self._run(pairs, output_hidden_states=True)
        hidden = output.decoder_hidden_states[-1] if self.seq2seq else output.hidden_states[-1]
        weights = ((scored != IGNORED) if self.seq2seq else mask)[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)

    # ------------------------------------------------ as an objective (attribution/objective.py)

    @property
    def module(self) -> nn.Module:
        """Itself."""
        return self

    def outputs(self, examples: Sequence[TextExample]) -> Tensor:
        """Logits of the right answers' sequences, [example, position, vocabulary]."""
        return self._logits(self._right_answers(examples))[0]

    def output_losses(self, outputs: Tensor, examples: Sequence[TextExample]) -> Tensor:
        """:meth:`losses` as a function of the outputs, [example]."""
        return -self._scored(outputs, self._padded_pairs(self._right_answers(examples))[2])

    def sampled_losses(
        self, outputs: Tensor, examples: Sequence[TextExample], generator: torch.Generator
    ) -> Tensor:
        """The losses of tokens drawn from the model's own distribution at each scored position, [example]."""
        scored = self._padded_pairs(self._right_answers(examples))[2]
        here = scored != IGNORED
        drawn = scored.clone()
        chances = outputs.detach()[here].double().softmax(1)
        drawn[here] = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return -self._scored(outputs, drawn)

    def rows(self, examples: Sequence[TextExample]) -> list[int]:
        """One sequence an example, the right answer's."""
        return [1] * len(examples)

    def masks(self, examples: Sequence[TextExample]) -> list[Tensor]:
        """Bool [example, token], False for padding: of the inputs, and of a decoder's inputs."""
        _, mask, scored = self._padded_pairs(self._right_answers(examples))
        return [mask.bool(), scored != IGNORED] if self.seq2seq else [mask.bool()]

    def token_strings(self, example: TextExample) -> list[str]:
        """The tokens of the right answer's sequence; of an encoder-decoder, of its input."""
        ids = self._right_answers([example])[0][0]
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(ids.tolist())]

    def _right_answers(self, examples: Sequence[TextExample]) -> list[tuple[Tensor, Tensor]]:
        return [self._token_ids(example)[example.label] for example in examples]

    # ------------------------------------------------------------------------- likelihoods

    def _log_likelihood(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The score of each (input, scored) pair of :meth:`_token_ids`, [pair]."""
        return self._scored(*self._logits(pairs))

    def _logits(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Logits [pair, position, vocabulary], and the token that each position should predict."""
        scored = self._padded_pairs(pairs)[2]
        logits = self._run(pairs).logits
        return (logits if self.seq2seq else logits[:, :-1]), scored

    def _run(self, pairs: Sequence[tuple[Tensor, Tensor]], **options: Any) -> Any:
        """What the Hugging Face model gives for the padded pairs."""
        ids, mask, scored = self._padded_pairs(pairs)
        if self.seq2seq:
            options["decoder_input_ids"] = self._shifted(scored)
        return self.lm(input_ids=ids, attention_mask=mask, use_cache=False, **options)

    def _scored(self, logits: Tensor, scored: Tensor) -> Tensor:
        """The log-likelihood of the scored tokens, summed or a mean, [pair]."""
        wide = logits.float() if logits.dtype.itemsize < 4 else logits
        losses = nn.functional.cross_entropy(
            wide.transpose(1, 2), scored, ignore_index=IGNORED, reduction="none"
        )
        total = -losses.sum(1)
        return total / (scored != IGNORED).sum(1) if self.per_token else total

    def _padded_pairs(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Input ids and mask [pair, token], and the tokens to predict (else ``IGNORED``) [pair, position]."""
        inputs, targets = zip(*pairs, strict=True)
        lengths = torch.tensor([len(ids) for ids in inputs], device=inputs[0].device)
        ids = nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        scored = nn.utils.rnn.pad_sequence(list(targets), batch_first=True, padding_value=IGNORED)
        # the token at t of a causal model is predicted at t − 1
        return ids, mask, scored if self.seq2seq else scored[:, 1:]

    def _shifted(self, scored: Tensor) -> Tensor:
        """The decoder's input: the start token, then all but the last scored token."""
        start = torch.full_like(scored[:, :1], self.lm.config.decoder_start_token_id)
        return torch.cat([start, scored[:, :-1].masked_fill(scored[:, :-1] == IGNORED, 0)], dim=1)

    # ------------------------------------------------------------------------------------ tokens

    def _token_ids(self, example: TextExample) -> list[tuple[Tensor, Tensor]]:
        """(input, scored tokens) of every choice, [token] each; computed once.

        Of a causal model the input is prompt and choice, and the scored tokens are as many, those of the
        prompt being ``IGNORED``; of a sequence-to-sequence model they are the prompt and the choice.
        """
        if example not in self._tokens:
            device = next(self.lm.parameters()).device
            self._tokens[example] = [
                (torch.tensor(first, device=device), torch.tensor(second, device=device))
                for first, second in (self._pair(*choice) for choice in self._choices(example))
            ]
        return self._tokens[example]

    def _choices(self, example: TextExample) -> list[tuple[str, str]]:
        """(prompt, choice) of every choice. Raises ValueError for a class without a word."""
        if len(example.inputs) > 1:
            return list(example.inputs)
        if example.label >= len(self.class_words):
            raise ValueError(
                f"a language model scores words: class {example.label} of example {example.id!r} has none;"
                f" give model.class_words, one a class, got {list(self.class_words)}"
            )
        prompt = " ".join(text for text in example.inputs[0] if text)
        return [(prompt, word) for word in self.class_words]

    def _pair(self, prompt: str, choice: str) -> tuple[list[int], list[int]]:
        before: list[int] = self._tokenizer(prompt)["input_ids"]
        if self.seq2seq:
            after: list[int] = self._tokenizer(choice)["input_ids"]  # the end token among them
            return before[-self.max_length :], after[: self.max_length]
        config = self.lm.config
        if not before:  # the first token has to be predicted from something
            before = [config.bos_token_id if config.bos_token_id is not None else config.eos_token_id]
        separator = "" if prompt[-1:].isspace() or not prompt else " "
        after = self._tokenizer(separator + choice, add_special_tokens=False)["input_ids"]
        after = after[: self.max_length - 1]
        before = before[-(self.max_length - len(after)) :]
        return before + after, [IGNORED] * len(before) + after

    # ---------------------------------------------------------------------------- what is tuned

    @property
    def body(self) -> nn.Module:
        """What was pretrained: all there is."""
        return self.lm

    @property
    def layers(self) -> nn.ModuleList:
        """The layers next to the output, lowest first; a sequence-to-sequence model's are its decoder's."""
        base = self.lm.get_decoder() if self.seq2seq else self.lm.base_model
        for name in ("layers", "h", "block"):
            if isinstance(stack := getattr(base, name, None), nn.ModuleList):
                return stack
        raise ValueError(f"the layers of {type(self.lm).__name__} are not known; tune it in full")

    def freeze_lower(self, layers: int) -> None:
        """Freeze all that lies below the upper layers: embeddings (and an output map tied to them), the
        lowest ``layers`` layers, and a sequence-to-sequence model's encoder. They stay in eval mode.

        Raises ValueError if no layer is left to train.
        """
        stack = self.layers
        if not 0 <= layers < len(stack):
            raise ValueError(f"can freeze 0 .. {len(stack) - 1} of {len(stack)} layers, got {layers}")
        self.frozen_layers = layers
        for module in self._below():
            module.requires_grad_(False)
            module.eval()

    def train(self, mode: bool = True) -> LanguageModel:
        """As always; but frozen layers stay in eval mode, as an encoder's do."""
        super().train(mode)
        if self.frozen_layers:
            for module in self._below():
                module.eval()
        return self

    def _below(self) -> list[nn.Module]:
        base = self.lm.get_decoder() if self.seq2seq else self.lm.base_model
        below = [module for module in base.children() if isinstance(module, nn.Embedding)]
        if self.seq2seq:
            below.append(self.lm.get_encoder())
        return [*below, *self.layers[: self.frozen_layers]]
