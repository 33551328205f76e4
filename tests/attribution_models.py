"""Tiny objectives of every kind of model, with examples of unequal lengths, for the tests of attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simfluence.attribution import Classification
from simfluence.finetuning.classifiers import TextClassifier
from simfluence.finetuning.language_models import LanguageModel
from simfluence.finetuning.tasks import TextExample
from simfluence.finetuning.tunings import apply_tuning

VOCABULARY = 37


class Words:
    """A tokenizer: a word is the number that follows its "w"."""

    def __call__(self, first: Any, second: Any = None, **options: Any) -> dict[str, Any]:
        if isinstance(first, str):
            return {"input_ids": self.ids(first)}
        pairs = zip(first, second or [""] * len(first), strict=True)
        rows = [[1, *self.ids(a), 2, *self.ids(b)] for a, b in pairs]
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        }

    @staticmethod
    def ids(text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]


def texts(count: int, *, options: int = 1, seed: int = 0, longest: int = 6) -> list[TextExample]:
    """Made-up examples of 1 to ``longest`` words a text, with 1 to ``options`` options to choose from."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=draw))

    def sentence() -> str:
        return " ".join(f"w{number(3, VOCABULARY)}" for _ in range(number(1, longest + 1)))

    found = []
    for i in range(count):
        many = 2 + i % (options - 1) if options > 1 else 1
        inputs = tuple((sentence(), sentence()) for _ in range(many))
        label = number(0, many if options > 1 else 2)
        found.append(TextExample(f"{seed}-{i}", "", inputs, label))
    return found


def bert(*, n_outputs: int = 2, tuning: str = "full", seed: int = 0, **options: Any) -> TextClassifier:
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=32,
    )  # fmt: skip
    model = TextClassifier(BertModel(config), Words(), n_outputs)
    return _prepared(model, tuning, seed, options)


def gpt2(*, tuning: str = "full", seed: int = 0, **options: Any) -> LanguageModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )  # fmt: skip
    model = LanguageModel(GPT2LMHeadModel(config), Words(), class_words=("w3 w4", "w5"))
    return _prepared(model, tuning, seed, options)


def llama(*, tuning: str = "full", seed: int = 0, **options: Any) -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=1,
    )  # fmt: skip
    model = LanguageModel(LlamaForCausalLM(config), Words(), class_words=("w3 w4", "w5"))
    return _prepared(model, tuning, seed, options)


def t5(*, tuning: str = "full", seed: int = 0, **options: Any) -> LanguageModel:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2,
        relative_attention_num_buckets=8, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LanguageModel(T5ForConditionalGeneration(config), Words(), class_words=("w3 w4", "w5"))
    return _prepared(model, tuning, seed, options)


def network(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> Classification:
    """Two linear maps and a norm; examples of :func:`points`."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4, bias=False))
    return Classification(layers.to(dtype))


def points(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, int]]:
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(3, generator=draw, dtype=dtype), int(torch.randint(4, (1,), generator=draw)))
        for _ in range(count)
    ]


def _prepared(model: Any, tuning: str, seed: int, options: dict[str, Any]) -> Any:
    if tuning == "ia3" or tuning == "lora":
        options = {"rank": 2, "alpha": 4.0, "seed": seed, **options} if tuning == "lora" else options
    apply_tuning(model, tuning, **options)
    torch.manual_seed(seed + 1)
    with torch.no_grad():  # away from special values: zero biases, zero updates, scales of one
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.double()


CASES: dict[str, Callable[[], tuple[Any, Sequence[Any]]]] = {
    "network": lambda: (network(), points(5)),
    "bert": lambda: (bert(), texts(5)),
    "bert choices": lambda: (bert(n_outputs=1), texts(5, options=3)),
    "bert last layer": lambda: (bert(tuning="last_layers", layers=1), texts(5)),
    "bert lora": lambda: (bert(tuning="lora"), texts(5)),
    "bert ia3": lambda: (bert(tuning="ia3"), texts(5)),
    "gpt2": lambda: (gpt2(), texts(5)),
    "gpt2 lora": lambda: (gpt2(tuning="lora"), texts(5)),
    "gpt2 ia3": lambda: (gpt2(tuning="ia3"), texts(5)),
    "llama": lambda: (llama(), texts(5)),
    "t5": lambda: (t5(), texts(5)),
}
"""name → (objective, examples), in float64."""


def naive_gradients(objective: Any, examples: Sequence[Any], parameters: dict[str, nn.Parameter]) -> Tensor:
    """[example, parameter]: one example, one backward pass."""
    training = objective.module.training
    objective.module.eval()
    flat = []
    for example in examples:
        parts = torch.autograd.grad(
            objective.losses([example])[0], list(parameters.values()), materialize_grads=True
        )
        flat.append(torch.cat([part.flatten() for part in parts]))
    objective.module.train(training)
    return torch.stack(flat)
