"""Tiny random causal language models with a tokenizer of bytes, saved as folders."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(folder: Path, *, template: str | None = None, bos: bool = False) -> None:
    """Every byte is a token. template: the chat template. bos: whether texts begin with <s>."""
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {
        token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)


def save_model(folder: Path, architecture: str = "gpt2", *, tokens: int = 256, **tokenizer) -> str:
    """A model of two layers, for sequences of so many tokens, with its tokenizer; returns the folder."""
    torch.manual_seed(0)
    if architecture == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=261,
                n_positions=tokens,
                n_embd=16,
                n_layer=2,
                n_head=2,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=261, max_position_embeddings=tokens, hidden_size=16, intermediate_size=32,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, bos_token_id=1,
                eos_token_id=2,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    save_tokenizer(folder, **tokenizer)
    return str(folder)
