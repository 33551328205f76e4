"""The small language model and the made-up texts of scale.py.

A topic has words and habits of its own: who does what to what. The model is pretrained on texts of other
topics, so that it knows what sentences look like; fine-tuning teaches it twenty new topics, one a group.
Texts are 127 letters, tokens are bytes, and the end token makes them 128.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simfluence.finetuning.completions import CompletionModel
from simfluence.finetuning.tasks import load_task

TOKENS, TOPICS, TESTS = 128, 20, 100
PRETRAINED_TOPICS, PRETRAINING, BATCH = 400, 1608, 8
END = "<|end|>"
SHAPE = {"hidden_size": 448, "intermediate_size": 1184, "num_hidden_layers": 2, "num_attention_heads": 7}
"""4.9 million parameters."""
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en")]


class Topic:
    """Texts about twelve subjects, of which each does two things to three objects."""

    def __init__(self, number: int) -> None:
        rng = np.random.default_rng([1, number])
        words = ["".join(rng.choice(_SYLLABLES, rng.integers(2, 4))) for _ in range(36)]
        self.subjects, self.verbs, self.objects = words[:12], words[12:20], words[20:]
        self.does = [rng.choice(self.verbs, 2) for _ in self.subjects]
        self.to = [rng.choice(self.objects, 3) for _ in self.subjects]

    def text(self, rng: np.random.Generator) -> str:
        text = ""
        while len(text) < TOKENS:
            who = int(rng.integers(len(self.subjects)))
            verb, what = rng.choice(self.does[who]), rng.choice(self.to[who])
            text += f"the {self.subjects[who]} {verb}s the {what}. "
        return text[: TOKENS - 1]


def write_texts(file: Path, count: int, topics: range, seed: int) -> None:
    """A JSONL file of texts, as many of each topic, with their topics as groups."""
    if file.exists():
        return
    rng, made = np.random.default_rng(seed), [Topic(number) for number in topics]
    rows = [
        {"id": f"{seed}-{i}", "group": f"topic-{i % len(made):02d}", "text": made[i % len(made)].text(rng)}
        for i in range(count)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; one more ends a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def pretrain(folder: Path) -> None:
    """Write the pretrained model and its tokenizer into a folder, unless they are there."""
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=TOKENS, tie_word_embeddings=True,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, **SHAPE,
    )  # fmt: skip
    lm = LlamaForCausalLM(config)
    file = folder.parent / "pretraining.jsonl"
    write_texts(file, PRETRAINING, range(TOPICS, TOPICS + PRETRAINED_TOPICS), seed=2)
    task = load_task("instructions", path=str(file), n_train=PRETRAINING - 8, n_test=8)
    model = CompletionModel(lm, tokenizer, task, max_length=TOKENS)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3, weight_decay=0.01)
    steps = len(task.train) // BATCH
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50, (steps - step) / (steps / 2))
        loss = model.losses(task.train[step * BATCH : (step + 1) * BATCH]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"pretrained in {steps} steps; last loss {loss.item():.2f}", flush=True)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
