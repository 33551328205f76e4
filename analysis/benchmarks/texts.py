"""Models and made-up texts for the benchmarks of attribution."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simfluence.attribution import selected_parameters
from simfluence.finetuning.classifiers import TextClassifier
from simfluence.finetuning.models import load_model
from simfluence.finetuning.tasks import TextExample

BATCH = 32


def minilm(n_train: int, n_test: int) -> tuple[TextClassifier, list[TextExample], list[TextExample]]:
    model = load_model("minilm", SimpleNamespace(n_labels=2), max_length=64)
    examples = made_up_texts(n_train + n_test, words=80)
    assert {model.length(example) for example in examples} == {64}
    return model, examples[:n_train], examples[n_train:]


def made_up_texts(count: int, words: int, seed: int = 0) -> list[TextExample]:
    """Texts of invented words, with labels at random."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    vocabulary = ["".join(rng.choice(syllables, 2)) for _ in range(800)]
    return [
        TextExample(f"{seed}-{i}", "", ((" ".join(rng.choice(vocabulary, words)), ""),), int(rng.integers(2)))
        for i in range(count)
    ]


def linear_layers(model: nn.Module) -> list[str]:
    """All that lie between the input and the loss."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "pooler" not in n]


def passes(model: TextClassifier, examples: Sequence[TextExample], names: Sequence[str]) -> None:
    """One forward and backward pass over all examples."""
    model.eval()
    parameters = list(selected_parameters(model, names).values())
    for start in range(0, len(examples), BATCH):
        losses = model.losses(examples[start : start + BATCH])
        torch.autograd.grad(losses.sum(), parameters)


def small_bert(width: int) -> TextClassifier:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=512,
    )  # fmt: skip
    return TextClassifier(BertModel(config, add_pooling_layer=False), Words(), 2, max_length=512)


class Words:
    """A tokenizer for made-up numbers of tokens."""

    def __call__(self, first: list[str], second: Any = None, **options: Any) -> dict[str, Tensor]:
        rows = [[int(word) for word in text.split()] for text in first]
        ids = torch.tensor(rows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def made_up_numbers(count: int, tokens: int) -> list[TextExample]:
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(3, 100, tokens))) for _ in range(count)]
    return [TextExample(str(i), "", ((text, ""),), i % 2) for i, text in enumerate(texts)]
