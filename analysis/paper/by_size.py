"""Influence by model size after Grosse et al. 2023, section 5.3: what influential sequences share.

    python analysis/paper/by_size.py --measure [--folder FOLDER]     (about five minutes on one core)
    python analysis/paper/by_size.py                                 (tables and figure of what was measured)

FOLDER has the three sizes of small_gpt.py. Each is fine-tuned on a pool of sequences; then every sequence
gets an influence on every query, by EK-FAC over the feed-forward layers, as in the paper, and by dot
products and cosines of the same layers' gradients. A query asks for the trade or home of a made-up person
who was not in the pretraining text. The pool has what the query asks for in the query's wording, in a
paraphrase that shares no content word but the name, and in the made-up language of made_up_text.py; the
same of as many other people; and natural sentences that were held out from pretraining.

Raw results: data/by_size.csv, scores (mean over the fine-tuning seeds) and token overlap by query and
sequence; data/by_size_models.csv, losses before and after fine-tuning. Natural sentences have numbers
only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from made_up_text import PARAPHRASE, STATEMENT, VALUES, Fact, people, translated
from protocol import RESULTS
from shown import write_latex
from small_gpt import FOLDER, PRETRAINED_PEOPLE, SIZES, split, texts

from simfluence.attribution import ekfac, gradient_similarity
from simfluence.curriculum import Curriculum
from simfluence.finetuning.loop import train
from simfluence.finetuning.models import load_model
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.finetuning.tasks import Task, TextExample

QUERIES, OTHERS, NATURAL = 24, 24, 96
PASSES, BATCH, SEEDS = 10, 8, (0,)
RATE_SHARE = 0.3
"""The fine-tuning rate of AdamW, as a share of the size's highest rate in pretraining."""
LAYERS = ["*mlp*"]
METHODS = {"ekfac": "EK-FAC", "dot": "gradient dot product", "cosine": "gradient cosine"}
FORMS = ("same wording", "paraphrase", "made-up language")
TOP = 10
DIFFERENCE = "large − small"
DATA = RESULTS / "data"
MEASURED = ["query", "sequence", "form", "overlap"]


# ------------------------------------------------------------------------------------------ examples


def facts() -> list[Fact]:
    """A trade or a home of every new person: the first ``QUERIES`` are asked for."""
    rng = np.random.default_rng(0)
    names = people()[PRETRAINED_PEOPLE : PRETRAINED_PEOPLE + QUERIES + OTHERS]
    relations = [list(VALUES)[number % len(VALUES)] for number in range(len(names))]
    return [Fact(name, r, str(rng.choice(list(VALUES[r])))) for name, r in zip(names, relations, strict=True)]


def queries() -> list[TextExample]:
    """What is asked: the words of the statement after the verb, given those before."""
    found = []
    for fact in facts()[:QUERIES]:
        prompt = STATEMENT[fact.relation].split(" {word}")[0].format(name=fact.name)
        others = [word for word in VALUES[fact.relation] if word != fact.word]
        choices = tuple((prompt, f"{word}.") for word in (fact.word, *others))
        found.append(TextExample(fact.name, fact.name, choices, 0))
    return found


def pool() -> list[TextExample]:
    """The sequences, every token of which is learnt; groups are people, or "" for natural sentences."""
    found = []
    for fact in facts():
        said = fact.said(STATEMENT[fact.relation])
        sentences = (said, fact.said(PARAPHRASE[fact.relation]), translated(said, fact.name))
        found += [_sequence(f"{fact.name}: {f}", fact.name, s) for f, s in zip(FORMS, sentences, strict=True)]
    short = [text for text in split(texts())[1]["natural"] if len(text) < 160][:NATURAL]
    return found + [_sequence(f"natural {number}", "", text) for number, text in enumerate(short)]


def _sequence(name: str, group: str, text: str) -> TextExample:
    return TextExample(name, group, (("", text), ("", "-")), 0)


def form(sequence: TextExample, query: TextExample) -> str:
    """What a sequence is to a query."""
    if not sequence.group:
        return "natural"
    return sequence.id.split(": ")[1] if sequence.group == query.group else "other person"


# --------------------------------------------------------------------------------------- measurement


def measure(folder: Path) -> None:
    """Fine-tune and score the sizes that are not measured yet."""
    sequences, asked = pool(), queries()
    task = Task("pool", "choice", sequences, asked)
    pairs = [(query, sequence) for query in asked for sequence in sequences]
    scores_file, losses_file = DATA / "by_size.csv", DATA / "by_size_models.csv"
    scores = pd.DataFrame([(q.id, s.id, form(s, q)) for q, s in pairs], columns=MEASURED[:3])
    losses = pd.DataFrame()
    if scores_file.exists():
        scores, losses = pd.read_csv(scores_file), pd.read_csv(losses_file)
    print(f"{len(SIZES) * len(SEEDS)} fine-tunings of {PASSES} passes over {len(sequences)} sequences,"
          " each scored by three methods: about five minutes on one core", file=sys.stderr)  # fmt: skip
    for size in (size for size in SIZES if f"ekfac {size}" not in scores):
        totals: dict[str, Any] = dict.fromkeys(METHODS, 0.0)
        for seed in SEEDS:
            model: Any = load_model(str(folder / size), task, dropout=0.0)
            row = {"size": size, "parameters": model.lm.num_parameters(), "seed": seed,
                   "rate": SIZES[size][2] * RATE_SHARE}  # fmt: skip
            before, after = fine_tuned(model, task, row["rate"], seed)
            losses = pd.concat([losses, pd.DataFrame([row | before | after])])
            print(losses.tail(1).to_string(index=False), file=sys.stderr, flush=True)
            for method, found in influences(model, sequences, asked).items():
                totals[method] = totals[method] + found / len(SEEDS)
        scores["overlap"] = [overlap(model, s, q) for q, s in pairs]
        for method, total in totals.items():
            scores[f"{method} {size}"] = np.asarray(total).T.ravel()
        scores.to_csv(scores_file, index=False, float_format="%.5g")
        losses.to_csv(losses_file, index=False, float_format="%.5g")


def fine_tuned(model: Any, task: Task, rate: float, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Train on the pool. Returns the mean losses of pool and queries before and after, nats a token."""
    before = mean_losses(model, task, "before")
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(task.train)) for _ in range(PASSES)])
    optimizer, schedule = make_optimizer(model.parameters(), 1, name="adamw", lr=rate, weight_decay=0.01)
    curriculum = Curriculum.from_batches(order.reshape(-1, BATCH), len(task.train))
    train(model, task.train, curriculum, optimizer, None, schedule)
    model.eval()
    return before, mean_losses(model, task, "after")


@torch.no_grad()
def mean_losses(model: Any, task: Task, when: str) -> dict[str, float]:
    """The mean loss of the pool and of the queries."""
    model.eval()
    found = {"pool": task.train, "queries": task.test}
    return {f"{name} {when}": float(model.losses(examples).mean()) for name, examples in found.items()}


def influences(
    model: Any, sequences: Sequence[TextExample], asked: Sequence[TextExample]
) -> dict[str, np.ndarray]:
    """Method → scores [sequence, query]; positive: the sequence lowers the query's loss."""
    return {
        "ekfac": ekfac(model, sequences, asked, parameters=LAYERS, batch_size=24).scores,
        "dot": gradient_similarity(model, sequences, asked, parameters=LAYERS, batch_size=24).scores,
        "cosine": gradient_similarity(
            model, sequences, asked, similarity="cosine", parameters=LAYERS, batch_size=24
        ).scores,
    }  # fmt: skip


def overlap(model: Any, sequence: TextExample, query: TextExample) -> float:
    """The share of the sequence's different tokens that the query has too (prompt and answer)."""
    own, asked = set(model.token_strings(sequence)[1:]), set(model.token_strings(query))
    return len(own & asked) / len(own)


# ----------------------------------------------------------------------------------- tables and figure


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over queries, and the ends of its 95 % bootstrap interval (10 000 draws, seed 0)."""
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Every quantity by method and size, and the outer sizes' difference, with intervals over queries."""
    rows = []
    for method, name in METHODS.items():
        found = {size: quantities(scores, f"{method} {size}") for size in SIZES}
        smallest, *_, largest = found.values()
        found[DIFFERENCE] = {what: largest[what] - smallest[what] for what in largest}
        for what in largest:
            for size, of_size in found.items():
                mean, low, high = interval(of_size[what])
                rows.append({"method": name, "what": what, "size": size, "mean": mean, "low": low,
                             "high": high, "queries": len(of_size[what])})  # fmt: skip
    return pd.DataFrame(rows)


def quantities(scores: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    """What is measured → its value for each query, in %.

    Overlaps are of a sequence's different tokens. A percentile is the share of the other sequences that score
    less: of all in the pool, or of those that say what is true of others in the same form.
    """
    found: dict[str, list[float]] = {}
    for _, of_query in scores.groupby("query", sort=True):
        ranked = of_query.sort_values(column, ascending=False, kind="stable")
        strangers = ranked[~ranked["form"].isin(FORMS)]
        for whose, among in (("", ranked), (", of others", strangers)):
            shares = 100 * among["overlap"]
            found.setdefault(f"overlap of the top {TOP}{whose}", []).append(shares.head(TOP).mean())
            found.setdefault(f"overlap of random sequences{whose}", []).append(shares.mean())
        for one in FORMS:
            own = of_query.loc[of_query["form"] == one, column].item()
            same = of_query[of_query["sequence"].str.endswith(f": {one}")]
            for within, others in (("", of_query), (" among its form", same)):
                less = 100 * (others[column] < own).sum() / (len(others) - 1)
                found.setdefault(f"percentile{within}, {one}", []).append(less)
    return {what: np.array(values) for what, values in sorted(found.items())}


def show() -> None:
    """The tables and the figure, of the committed raw results."""
    scores = pd.read_csv(DATA / "by_size.csv")
    models = pd.read_csv(DATA / "by_size_models.csv").groupby("size", sort=False).mean()
    pretrained = pd.read_csv(DATA / "small_gpt.csv")
    found = summary(scores)
    found.to_csv(RESULTS / "by_size.csv", index=False, float_format="%.2f")
    (RESULTS / "by_size.md").write_text(report(found, models, pretrained, scores))
    draw(found, models["parameters"])


def report(found: pd.DataFrame, models: pd.DataFrame, pretrained: pd.DataFrame, scores: pd.DataFrame) -> str:
    """The page of tables."""
    whole = found[["mean", "low", "high"]].round().astype(int)
    cells = whole.apply(lambda r: f"{r['mean']} ({r['low']} to {r['high']})", axis=1)
    table = found.assign(cell=cells).pivot_table(
        "cell", ["method", "what"], "size", aggfunc="first", sort=False
    )
    table = table[[*SIZES, DIFFERENCE]].reset_index()
    counts = scores[scores["query"] == scores["query"].iloc[0]]["form"].value_counts()
    texts_said = pretrained[["size", "layers", "width", "parameters", "text", "perplexity", "bits per byte"]]
    losses = models.drop(columns="seed").reset_index().astype({"parameters": int})
    write_latex("by_size", [table, losses.round(4), texts_said])
    return "\n".join([
        "# Influence by model size", "",
        "Three sizes of a small GPT-2 (very small: see the last table), each pretrained on the same text by"
        f" `small_gpt.py` and fine-tuned on a pool of {counts.sum()} sequences: {PASSES} passes, batch"
        f" {BATCH}, AdamW at a constant {RATE_SHARE:.0%} of the highest pretraining rate;"
        f" fine-tuning seeds: {len(SEEDS)}, over which scores are averaged."
        f" {scores['query'].nunique()} queries ask for the trade or home of a"
        f" made-up person; of the pool, {counts['other person']} sequences are of other people and"
        f" {counts['natural']} are natural sentences. Influence is of the feed-forward layers alone. Means"
        " over queries, with 95 % bootstrap intervals over queries (not over fine-tunings).", "",
        "Overlap: % of a sequence's different tokens that the query has. Percentile: % of the other"
        " sequences of the pool with a lower score; among its form: of the sequences that say something of"
        " other people in the same form; 50 is chance. The paraphrase shares the name and no other content"
        " word with the query; the made-up language shares the name alone. Of others: without the sequences"
        " about the query's person.", "",
        table.to_markdown(index=False), "",
        "Losses of pool and queries before and after fine-tuning, nats a token:", "",
        losses.round(4).to_markdown(index=False), "",
        "The pretrained models on held-out text:", "",
        texts_said.to_markdown(index=False), "",
        "Measured by `python analysis/paper/by_size.py --measure`; figure: [by_size.png](by_size.png).", "",
    ])  # fmt: skip


def draw(found: pd.DataFrame, parameters: pd.Series) -> None:
    """Overlap on the left, percentiles of the three forms on the right."""
    matplotlib.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.5), layout="constrained")
    of = found.set_index(["method", "what", "size"]).sort_index()
    x = np.array([parameters[size] / 1e6 for size in SIZES])

    def line(axes: Any, method: str, what: str, look: dict[str, Any], label: str, shift: float) -> None:
        rows = of.loc[[(method, what, size) for size in SIZES]]
        errors = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        axes.errorbar(x * shift, rows["mean"], errors, markersize=3, capsize=2, label=label, **look)

    for method, style, shift in (("EK-FAC", "o-", 0.97), ("gradient cosine", "s--", 1.03)):
        for colour, suffix in (("C0", ""), ("C1", ", of others")):
            look = {"fmt": style, "color": colour}
            line(
                left, method, f"overlap of the top {TOP}{suffix}", look, f"top {TOP}{suffix}, {method}", shift
            )
        for number, one in enumerate(FORMS):
            look = {"fmt": style, "color": f"C{number}"}
            spread = shift * (0.94 + 0.06 * number)
            line(right, method, f"percentile among its form, {one}", look, f"{one}, {method}", spread)
    line(left, "EK-FAC", "overlap of random sequences", {"fmt": ":", "color": "0.5"}, "random sequences", 1.0)
    right.axhline(50, color="0.5", linestyle=":", label="chance")
    left.set_ylabel("tokens shared with the query, %")
    left.set_title("Token overlap of the most influential sequences", fontsize=11)
    right.set_ylabel("percentile among sequences of the same form, %")
    right.set_title("Influence of the fact, by how it is said", fontsize=11)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{size}\n{value:.1f}" for size, value in zip(SIZES, x, strict=True)])
        axes.minorticks_off()
        axes.set_xlabel("model size, million parameters")
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    figure.savefig(RESULTS / "by_size.png", dpi=150, metadata={"Software": None})
    figure.savefig(RESULTS / "by_size.pdf", metadata={"CreationDate": None})
    plt.close(figure)


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    if options.measure:
        measure(options.folder)
    show()


if __name__ == "__main__":
    main()
