"""Causal language models that learn to write completions, as instruction tuning has it.

    L(example) = −(1/|S|) Σ_{t ∈ S} log p(x_t | x_<t)

or the plain sum, where x are the tokens of the whole text and S those that are scored: the targets' tokens,
or all. It is the loss of transformers for the labels x_t at t ∈ S and −100 elsewhere. The first token of a
sequence is never scored.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simfluence.finetuning.language_models import IGNORED, LanguageModel
from simfluence.finetuning.tasks import Completion, Task
from simfluence.recording.losses import token_metrics

LossOn = Literal["completion", "all"]

Span = tuple[int, int]
"""The first character of a piece of text, and the first after it."""


class TruncatedWarning(UserWarning):
    """An example has more tokens than the model is given."""


class CompletionModel(LanguageModel):
    """A causal language model whose examples are :class:`~simfluence.finetuning.tasks.Completion`.

    Plain texts are put together as they are, and the tokenizer's end token, if there is one, is added and
    belongs to the last target. A chat is put together by the tokenizer's chat template; what the template
    writes between the assistant's header and the next turn belongs to the assistant's turn.

    Parameters
    ----------
    lm : a causal Hugging Face model.
    tokenizer : a fast one.
    task : whose examples it is for.
    per_token : losses are means over an example's scored tokens; otherwise sums.
    loss_on : the tokens that are scored: those of the targets ("completion"), or "all".
    max_length : tokens of an example. A longer one loses the beginning of its prompt, and then the end of its
        completion; a TruncatedWarning says so once.

    Raises
    ------
    ValueError : the model takes fewer tokens, or an example is a chat and the tokenizer has no template for
        it.
    """

    def __init__(
        self,
        lm: nn.Module,
        tokenizer: Any,
        task: Task,
        *,
        per_token: bool = True,
        loss_on: LossOn = "completion",
        max_length: int = 128,
    ) -> None:
        super().__init__(lm, tokenizer, per_token=per_token, max_length=max_length)
        if loss_on not in ("completion", "all"):
            raise ValueError(f"loss_on must be 'completion' or 'all', got {loss_on!r}")
        most = getattr(self.lm.config, "max_position_embeddings", None)
        if max_length < 2 or (most is not None and max_length > most):
            raise ValueError(f"this model takes 2 to {most or '…'} tokens: max_length cannot be {max_length}")
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError("completions need a fast tokenizer, which says where in the text its tokens are")
        _check_template(tokenizer, task)
        self.loss_on = loss_on
        self._completions: dict[Completion, tuple[Tensor, Tensor]] = {}
        self._warned_of_truncation = False

    # ------------------------------------------------------------------------- scores and losses

    def forward(self, examples: Sequence[Completion]) -> Tensor:  # type: ignore[override]
        """Log-likelihood of each example's scored tokens, [example, 1]: there is no other answer."""
        return -self.losses(examples)[:, None]  # type: ignore[arg-type]

    def metrics(self, examples: Sequence[Completion]) -> dict[str, Tensor]:  # type: ignore[override]
        """ "loss" as in :meth:`losses`; "accuracy" is the share of the scored tokens that have the largest
        logit, "margin" the mean over them of the token's logit minus the largest other one; [example] each.
        """
        logits, scored = self._logits(self._right_answers(examples))
        return {**token_metrics(logits, scored), "loss": -self._scored(logits, scored)}

    # ------------------------------------------------------------------------------------ tokens

    def _token_ids(self, example: Completion) -> list[tuple[Tensor, Tensor]]:  # type: ignore[override]
        """One pair (input, scored tokens), [token] each; where none is scored it is ``IGNORED``."""
        if example not in self._completions:
            device = next(self.lm.parameters()).device
            ids, scored = self._tokenized(example)
            self._completions[example] = (
                torch.tensor(ids, device=device),
                torch.tensor(scored, device=device),
            )
        return [self._completions[example]]

    def _right_answers(self, examples: Sequence[Completion]) -> list[tuple[Tensor, Tensor]]:  # type: ignore[override]
        return [self._token_ids(example)[0] for example in examples]

    def _tokenized(self, example: Completion) -> tuple[list[int], list[int]]:
        """Raises ValueError if no token of the example's completion can be scored."""
        text, targets = _chat_text(self._tokenizer, example) if example.is_chat else _plain_text(example)
        encoded = self._tokenizer(
            text, add_special_tokens=not example.is_chat, return_offsets_mapping=True, verbose=False
        )
        ids: list[int] = encoded["input_ids"]
        is_target = [_is_in(span, targets) for span in encoded["offset_mapping"]]
        end = self._tokenizer.eos_token_id
        if not example.is_chat and end is not None and example.turns[-1].is_target:
            if ids[-1:] != [end]:
                ids, is_target = [*ids, end], [*is_target, False]
            is_target[-1] = True
        if not any(is_target[1:]):
            raise ValueError(
                f"example {example.id!r} has no token of a completion after its first token, so that there is"
                " nothing to predict; give it a longer completion or a prompt, or leave it out"
            )
        ids, is_target = self._cut(example.id, ids, is_target)
        scored = [True] * len(ids) if self.loss_on == "all" else is_target
        return ids, [token if chosen else IGNORED for token, chosen in zip(ids, scored, strict=True)]

    def _cut(self, name: str, ids: list[int], is_target: list[bool]) -> tuple[list[int], list[bool]]:
        """The ``max_length`` tokens that keep as much of the completion as possible, from its beginning, and
        at least one token before it."""
        excess = len(ids) - self.max_length
        if excess <= 0:
            return ids, is_target
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            warnings.warn(
                f"example {name!r} has {len(ids)} tokens, more than max_length={self.max_length}"
                " (model.max_length on the command line): it and others like it lose the beginning of the"
                " prompt, then the end of the completion",
                TruncatedWarning,
                stacklevel=6,
            )
        first = is_target.index(True, 1)
        start = min(excess, first - 1)
        kept = slice(start, start + self.max_length)
        return ids[kept], is_target[kept]


def _check_template(tokenizer: Any, task: Task) -> None:
    """Raises ValueError if there are chats in the task and the tokenizer cannot put them together."""
    chat = next((example for example in (*task.train, *task.test) if example.is_chat), None)
    if chat is not None and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"example {chat.id!r} is a chat, and the model's tokenizer has no chat template: choose a model"
            " that was tuned on instructions, put a chat_template.jinja into the model's folder, or give the"
            " rows as prompt and completion texts"
        )


def _plain_text(example: Completion) -> tuple[str, list[Span]]:
    """The text, and where its targets are."""
    targets, end = [], 0
    for turn in example.turns:
        start, end = end, end + len(turn.text)
        if turn.is_target:
            targets.append((start, end))
    return example.text, targets


def _chat_text(tokenizer: Any, example: Completion) -> tuple[str, list[Span]]:
    """The text that the template makes of a chat, and where its targets are.

    Raises ValueError if the template refuses the chat, or the targets are not found in the text.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in example.turns]

    def rendered(number: int, **options: Any) -> str:
        """The text of the first turns."""
        try:
            text: str = tokenizer.apply_chat_template(messages[:number], tokenize=False, **options)
        except Exception as error:  # jinja's, or whatever the template raises
            raise ValueError(
                f"example {example.id!r}: the tokenizer's chat template refuses the chat: {error}"
            ) from error
        return text

    whole = rendered(len(messages))
    targets = []
    for number, turn in enumerate(example.turns):
        if not turn.is_target:
            continue
        before = [rendered(number, add_generation_prompt=True), rendered(number)] if number else [""]
        up_to = rendered(number + 1) if number + 1 < len(messages) else whole
        found = _target(whole, before, up_to, turn.text.strip())
        if found is None:
            raise ValueError(
                f"example {example.id!r}: the tokenizer's chat template leaves out or changes the text of"
                f" turn {number + 1}, or of a turn before it; its tokens cannot be told from the others"
            )
        targets.append(found)
    return whole, targets


def _target(whole: str, before: Sequence[str], up_to: str, content: str) -> Span | None:
    """Where in the text of a chat a turn is that the model writes; None if it is not found.

    It begins where the assistant's header ends, and ends with what the template writes after the content (an
    end token), as far as this is the same whether or not other turns follow.

    before : the text of the turns before, with and without the assistant's header; the header of some
        templates has more in it (thinking) than they write in the end.
    up_to : the text of the turns up to this one.
    """
    opening = next((text for text in before if whole.startswith(text)), None)
    if opening is None or (found := whole.find(content, len(opening))) < 0:
        return None
    start = len(opening) if opening == before[0] else found
    end = found + len(content)
    last = up_to.rfind(content)
    after = up_to[last + len(content) :] if last >= 0 else ""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole[end:], after, strict=False))
    return start, end + sum(1 for _ in same)


def _is_in(token: Span, targets: Sequence[Span]) -> bool:
    """Whether a token ends in a target: its last character is in it."""
    return token[0] < token[1] and any(start < token[1] <= end for start, end in targets)
