"""Influence by layer and by token, on a small GPT that was fine-tuned on made-up facts.

    python analysis/paper/layers_and_tokens.py --measure FOLDER    (a GPT of small_gpt.py; a minute)
    python analysis/paper/layers_and_tokens.py                     the tables and the figure, in seconds

The GPT is fine-tuned on the 200 sentences of robustness.py, twenty of which state who was the first president
of a made-up country. For each query ("The first president of Astrobia was", completed by the name) two kinds
of training sentences are taken apart by layer and token (EK-FAC): the one that states it, and the three most
influential ones, in absolute value, that are not about a president.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from presidents import FACTS, STATEMENT, fine_tune, load, pool, query
from safetensors.numpy import load_file, save_file
from shown import DATA, interval, save_figure, save_tables

from simfluence.attribution import ekfac, ekfac_by_layer_and_token, ekfac_factors

NAME = "layers_and_tokens"
TOP = 3
KINDS = ("statement", "unrelated")
CLASSES = ("predicts the name", "the name itself", "the country", "other")
"""What the token of a statement is, at whose position a gradient arises. A token that comes before one of the
name predicts it, and may itself be one of the name; "the name itself" is its last token, which predicts the
full stop."""

TEXT = """
A GPT-2 of {layers} layers x {width}, {parameters:.1f}M parameters, pretrained on half a million tokens: a
very small model. {facts} queries; means over them with 95 % intervals of a bootstrap.

*Share of a layer*: the absolute scores of its blocks (weights and biases), over those of all. The embeddings
are tied to the output map, so that their part is of both.

*Share of tokens*: absolute scores by token (summed over layers), over those of all tokens; *share of the
tokens*: how many of the sentence's tokens these are.
"""


# ------------------------------------------------------------------------------------------ measure


def measure(folder: Path) -> None:
    """Fine-tune, score the pool, and take the scores of a few pairs apart."""
    print("one fine-tuning, EK-FAC of 200 sentences, 20 queries", file=sys.stderr)
    DATA.mkdir(parents=True, exist_ok=True)
    model = load(folder)
    examples = pool([fact.said(STATEMENT) for fact in FACTS])
    fine_tune(model, copy.deepcopy(model.state_dict()), examples, 0)
    queries = [query(fact) for fact in FACTS]
    factors = ekfac_factors(model, examples)
    whole = ekfac(model, examples, queries, factors=factors).scores
    by_layer, by_token, classes = [], [], []
    for number, one in enumerate(queries):
        others = len(FACTS) + np.argsort(-np.abs(whole[len(FACTS) :, number]), kind="stable")[:TOP]
        taken = [examples[number], *(examples[other] for other in others)]
        apart = ekfac_by_layer_and_token(model, taken, [one], factors=factors)
        by_layer.append(apart.by_layer[..., 0])
        tokens = np.zeros(model.max_length)
        tokens[: apart.tokens.shape[-1]] = apart.tokens[:, 0, 0].sum(0)
        by_token.append(tokens)
        assert not apart.whole.any()  # every block of a GPT works on tokens
        classes.append(classes_of(model.token_strings(examples[number]), FACTS[number]))
    save_file(
        {
            "by_block": np.array(by_layer, np.float32),
            "by_token": np.array(by_token, np.float32),
            "classes": np.array([row + [-1] * (model.max_length - len(row)) for row in classes], np.int64),
            "scores": np.ascontiguousarray(whole, np.float32),
        },
        DATA / f"{NAME}.safetensors",
    )
    config = model.lm.config
    about = {"layers": config.n_layer, "width": config.n_embd, "blocks": list(apart.blocks)}
    about["parameters"] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    (DATA / f"{NAME}.json").write_text(json.dumps(about) + "\n")


def classes_of(tokens: list[str], fact: Any) -> list[int]:
    """The class of every token of a statement, a number in ``CLASSES``. Tokens begin with Ġ after a blank."""
    text, owners = "", []
    for token in tokens:
        piece = "" if token.startswith("<|") else token.replace("Ġ", " ")
        owners.append((len(text), len(text) + len(piece)))
        text += piece
    spans = [(text.index(word), text.index(word) + len(word)) for word in (fact.name, fact.country)]
    inside = [[start < stop and start < b and stop > a for start, stop in owners] for a, b in spans]
    first = inside[0].index(True)
    found = []
    for position in range(len(tokens)):
        if position == first - 1 or (inside[0][position] and inside[0][min(position + 1, len(tokens) - 1)]):
            found.append(0)
        elif inside[0][position]:
            found.append(1)
        else:
            found.append(2 if inside[1][position] else 3)
    return found


# --------------------------------------------------------------------------------------------- show


def layer_of(block: str) -> str:
    """ "embeddings", "1", "2", … or "last norm" of a block of parameters."""
    found = re.search(r"\.h\.(\d+)\.", block)
    if found:
        return str(int(found[1]) + 1)
    return "last norm" if "ln_f" in block else "embeddings"


def layer_shares(tensors: dict[str, np.ndarray], blocks: list[str]) -> dict[str, pd.DataFrame]:
    """Kind → [query, layer], shares of absolute scores."""
    scores = np.abs(tensors["by_block"]).transpose(0, 2, 1)  # [query, example, block]
    layers = [layer_of(block) for block in blocks]
    found = {}
    for kind, rows in zip(KINDS, (scores[:, :1], scores[:, 1:]), strict=True):
        shares = (rows / rows.sum(2, keepdims=True)).mean(1)
        found[kind] = pd.DataFrame(shares, columns=blocks).T.groupby(layers, sort=False).sum().T
    return found


def token_shares(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """[query, class]: the share of absolute scores, and the share of tokens."""
    magnitude, classes = np.abs(tensors["by_token"]), tensors["classes"]
    of = np.stack([classes == number for number in range(len(CLASSES))], 1)  # [query, class, token]
    held = (of * magnitude[:, None]).sum(2)
    return held / held.sum(1, keepdims=True), of.sum(2) / of.sum((1, 2))[:, None]


def draw(shares: dict[str, pd.DataFrame], tokens: np.ndarray, counts: np.ndarray) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for number, kind in enumerate(KINDS):
        frame = shares[kind]
        means = 100 * np.array([interval(frame[layer])[:3] for layer in frame])
        at = np.arange(len(means)) + 0.2 * (2 * number - 1)
        errors = np.abs(means[:, 1:] - means[:, :1]).T
        label = "the statement" if kind == "statement" else f"{TOP} most influential others"
        left.bar(at, means[:, 0], 0.38, yerr=errors, color=f"C{number}", label=label)
    left.set_xticks(range(len(means)), list(shares[KINDS[0]]))
    left.set(xlabel="layer", ylabel="share of absolute influence, %")
    left.set_title("EK-FAC influence on the query by layer (95 % over queries)", fontsize=10)
    left.legend(fontsize=8)
    means = 100 * np.array([interval(column)[:3] for column in tokens.T])
    at = np.arange(len(CLASSES))
    errors = np.abs(means[:, 1:] - means[:, :1]).T
    right.bar(at - 0.2, means[:, 0], 0.38, yerr=errors, color="C0", label="share of absolute influence")
    right.bar(at + 0.2, 100 * counts.mean(0), 0.38, color="0.75", label="share of the tokens")
    right.set_xticks(at, CLASSES)
    right.set(xlabel="token of the statement", ylabel="share, %")
    right.set_title("the statement's influence by token", fontsize=10)
    right.legend(fontsize=8)
    return figure


def show() -> None:
    tensors = load_file(DATA / f"{NAME}.safetensors")
    about = json.loads((DATA / f"{NAME}.json").read_text())
    shares = layer_shares(tensors, about["blocks"])
    tokens, counts = token_shares(tensors)
    ranks = [int((row > row[number]).sum()) + 1 for number, row in enumerate(tensors["scores"].T)]
    by_layer = pd.DataFrame({"layer": list(shares[KINDS[0]])})
    for kind in KINDS:
        by_layer[f"share, {kind}"] = [interval(shares[kind][layer], 3) for layer in shares[kind]]
    by_token = pd.DataFrame({"token": CLASSES})
    by_token["share of the influence"] = [interval(column, 3) for column in tokens.T]
    by_token["share of the tokens"] = [interval(column, 3) for column in counts.T]
    first = sum(rank == 1 for rank in ranks)
    middle = f"{np.median(ranks):g}"
    reached = f"The statement ranks first of 200 for {first} of {len(ranks)} queries (median rank {middle})."
    save_tables(
        NAME,
        f"python analysis/paper/{NAME}.py --measure FOLDER",
        TEXT.format(**about, facts=len(FACTS)) + "\n" + reached,
        [
            (f"By layer, of the statement and of the {TOP} most influential unrelated sentences:", by_layer),
            ("By token of the statement:", by_token),
        ],
    )
    save_figure(draw(shares, tokens, counts), NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="fine-tune and score this GPT first")
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
    show()


if __name__ == "__main__":
    main()
