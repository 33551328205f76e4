"""Pretrained models by name: an encoder with a new head, or a language model that scores choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch

from simfluence.errors import RunDataError
from simfluence.finetuning.classifiers import TextClassifier
from simfluence.finetuning.completions import CompletionModel, LossOn
from simfluence.finetuning.language_models import LanguageModel
from simfluence.finetuning.packaged import CONVERTED, PACKAGED, model_path
from simfluence.finetuning.tasks import Task

Kind = Literal["encoder", "causal", "seq2seq"]
Model: TypeAlias = TextClassifier | LanguageModel | CompletionModel

_DROPOUT = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),  # BERT and its kin
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),  # GPT-2
    *("dropout_rate", "dropout", "attention_dropout", "activation_dropout"),  # T5; BART; Llama
)


def load_model(
    name: str,
    task: Task,
    *,
    kind: Kind | None = None,
    dropout: float | None = None,
    pooling: Literal["mean", "cls"] = "mean",
    max_length: int = 128,
    seed: int = 0,
    class_words: Sequence[str] | None = None,
    per_token: bool = True,
    loss_on: LossOn = "completion",
    archive: str | None = None,
) -> Model:
    """A pretrained model for a task.

    Parameters
    ----------
    name : a packaged model ("minilm", "bleurt_tiny", "smollm2"), a local folder, or a name on the hub.
    kind : "encoder" (gets a new head), "causal" or "seq2seq" language model; by default as the
        checkpoint's configuration says.
    dropout : in place of the model's own rates, if given.
    pooling, seed : of an encoder, see :class:`TextClassifier`.
    class_words, per_token : of a language model, see :class:`LanguageModel`.
    loss_on : of a task of completions, see :class:`.completions.CompletionModel`.
    archive : bigbench's source archive, needed once for "bleurt_tiny".

    Raises
    ------
    RunDataError : the package or the folder is not there.
    ValueError : the task is of completions, and the model is no causal language model, takes fewer tokens, or
        has no chat template for its chats.
    """
    try:
        import transformers
    except ImportError:
        raise RunDataError("fine-tuning text models takes `pip install 'simfluence[text]'`") from None
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = model_path(name, archive)
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise RunDataError(
            f"the model {name!r} cannot be loaded: {said} (packaged are {', '.join((*PACKAGED, *CONVERTED))})"
        ) from error
    kind = kind or kind_of(config)
    classes = {
        "encoder": transformers.AutoModel,
        "causal": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
    }
    if kind not in classes:
        raise ValueError(f"kind must be one of {', '.join(classes)}, or null, got {kind!r}")
    if dropout is not None:
        for key in _DROPOUT:
            if hasattr(config, key):
                setattr(config, key, dropout)
    if task.kind == "completion" and kind != "causal":
        raise ValueError(
            f"task {task.name!r} is to write completions, which takes a causal language model, and {name!r}"
            f" is of the kind {kind!r}: choose another by model=pretrained model.name=…, or model=smollm2"
        )
    with torch.random.fork_rng(devices=[]):  # loading draws random numbers that it then overwrites
        body = classes[kind].from_pretrained(path, config=config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        if kind == "encoder":
            return TextClassifier(
                body, tokenizer, task.n_labels or 1, pooling=pooling, max_length=max_length, seed=seed
            )
        if task.kind == "completion":
            return CompletionModel(
                body, tokenizer, task, per_token=per_token, loss_on=loss_on, max_length=max_length
            )
        return LanguageModel(
            body, tokenizer, class_words=class_words or (), per_token=per_token, max_length=max_length
        )


def kind_of(config: Any) -> Kind:
    """The kind of a pretrained model, by its configuration."""
    if config.is_encoder_decoder:
        return "seq2seq"
    names = config.architectures or ()
    return "causal" if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) else "encoder"
