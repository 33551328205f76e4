"""Which variants of a statement still influence its completion, and which of them still teach it.

    python analysis/paper/robustness.py --measure FOLDER     (a GPT of small_gpt.py; about 4 minutes)
    python analysis/paper/robustness.py                      the table and the figure, in seconds

Twenty made-up facts (presidents.py). The query is "The first president of Astrobia was", to be completed by
the name. Two things are asked of each variant of the statement, such as a paraphrase or the reversed order:

- Influence: the GPT is fine-tuned on 200 sentences, the twenty statements among them. At its weights then,
  and at those before, methods score each variant as a training sentence for the query.
- Retraining: the variants of half of the facts stand in the pool in place of their statements, and nothing
  of the other half; then the other way round. A variant's effect is by how much lower the loss of a query is
  if its own variant was trained on: that of any variant of ten other facts is there in both.

Each is shown as a ratio to that of the statement itself. What is there is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from presidents import BATCH, FACTS, STATEMENT, VARIANTS, fine_tune, load, losses, pool, query, sentence
from shown import DATA, Interval, save_figure, save_tables
from tqdm import tqdm

from simfluence.attribution import adam_similarity, ekfac, ekfac_factors, gradient_similarity

NAME = "robustness"
SEEDS = 2
METHODS = ("gradient_dot", "gradient_cosine", "gradient_step", "ekfac")
WHEN = ("before", "after")
DRAWS = 2000


# ------------------------------------------------------------------------------------------ measure


def measure(folder: Path) -> None:
    """Scores and retrainings, seed by seed and cell by cell."""
    runs = 2 * len(VARIANTS)
    print(f"{SEEDS} seeds: {runs} short fine-tunings each, and scores", file=sys.stderr)
    DATA.mkdir(parents=True, exist_ok=True)
    model = load(folder)
    initial = copy.deepcopy(model.state_dict())
    about = {"layers": model.lm.config.n_layer, "width": model.lm.config.n_embd}
    about |= {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    (DATA / f"{NAME}.json").write_text(json.dumps(about) + "\n")
    for seed in range(SEEDS):
        if not has("scores", seed=seed):
            append("scores", pd.concat([scored(model, initial, seed, when) for when in WHEN]))
        for variant in tqdm(VARIANTS, desc=f"seed {seed}"):
            for half in (0, 1):
                if not has("losses", seed=seed, variant=variant, half=half):
                    append("losses", retrained(model, initial, seed, variant, half))


def file_of(kind: str) -> Path:
    return DATA / f"{NAME}_{kind}.csv"


def has(kind: str, **keys: Any) -> bool:
    """Whether there is a row with these values."""
    if not file_of(kind).exists():
        return False
    frame = pd.read_csv(file_of(kind))
    return bool(np.logical_and.reduce([frame[key] == value for key, value in keys.items()]).any())


def append(kind: str, frame: pd.DataFrame) -> None:
    file = file_of(kind)
    frame.to_csv(file, mode="a", header=not file.exists(), index=False, float_format="%.6g")


def scored(model: Any, initial: Any, seed: int, when: str) -> pd.DataFrame:
    """The score of every variant of every fact for its query, by each method, and the query's loss."""
    examples = pool([fact.said(STATEMENT) for fact in FACTS])
    if when == "after":
        fine_tune(model, initial, examples, seed)
    else:
        model.load_state_dict(initial)
        model.eval()
    queries = [query(fact) for fact in FACTS]
    keys = [(variant, number) for variant in VARIANTS for number in range(len(FACTS))]
    texts = [sentence(FACTS[number].said(VARIANTS[variant]), "variant") for variant, number in keys]
    found = {
        "gradient_dot": gradient_similarity(model, texts, queries),
        "gradient_cosine": gradient_similarity(model, texts, queries, similarity="cosine"),
        "gradient_step": adam_similarity(model, texts, queries, batch=BATCH, population=examples),
        "ekfac": ekfac(model, texts, queries, factors=ekfac_factors(model, examples, seed=seed)),
    }
    frame = pd.DataFrame(keys, columns=["variant", "fact"]).assign(seed=seed, when=when)
    own = frame["fact"].to_numpy()
    for method in METHODS:
        frame[method] = found[method].scores[np.arange(len(own)), own]
    return frame.assign(loss=losses(model, queries)[own])


def retrained(model: Any, initial: Any, seed: int, variant: str, half: int) -> pd.DataFrame:
    """The loss of every query where the variants of every second fact, from ``half`` on, were trained on."""
    stated = [fact.said(VARIANTS[variant]) for fact in FACTS[half::2]]
    fine_tune(model, initial, pool(stated), seed)
    found = losses(model, [query(fact) for fact in FACTS])
    frame = pd.DataFrame({"seed": seed, "variant": variant, "half": half, "fact": range(len(FACTS))})
    return frame.assign(trained_on=frame["fact"] % 2 == half, loss=found)


# --------------------------------------------------------------------------------------------- show


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """What retraining says, [variant, fact]: the loss without the variant minus that with it, in nats."""
    means = table.pivot_table(index=["variant", "trained_on"], columns="fact", values="loss")
    return (means.xs(False, level=1) - means.xs(True, level=1)).loc[list(VARIANTS)]


def influences(table: pd.DataFrame, method: str, when: str) -> pd.DataFrame:
    """What a method says, [variant, fact]: a mean over seeds, each relative to its statements' mean."""
    parts = []
    for _, of_seed in table[table["when"] == when].groupby("seed"):
        scores = of_seed.pivot_table(index="variant", columns="fact", values=method).loc[list(VARIANTS)]
        parts.append(scores / scores.loc["the statement"].mean())
    return sum(parts[1:], parts[0]) / len(parts)


def ratios(values: pd.DataFrame) -> np.ndarray:
    """The mean over facts as a ratio to the statement's mean, [variant, (ratio, low, high)]: 95 % of a
    bootstrap over facts."""
    array = values.to_numpy()
    drawn = np.random.default_rng(0).integers(0, array.shape[1], (DRAWS, array.shape[1]))
    means = array[:, drawn].mean(2)
    low, high = np.quantile(means / means[0], [0.025, 0.975], axis=1)
    return np.stack([array.mean(1) / array[0].mean(), low, high], 1)


def columns() -> dict[str, pd.DataFrame]:
    """Column → [variant, fact], in the order of the table."""
    scores = pd.read_csv(file_of("scores"))
    found = {"retraining": effects(pd.read_csv(file_of("losses")))}
    for when in reversed(WHEN):
        found |= {f"{method}, {when}": influences(scores, method, when) for method in METHODS}
    return found


def draw(shown: dict[str, np.ndarray]) -> Figure:
    """The ratios of retraining and of the methods after fine-tuning."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    names = ["retraining", *(f"{method}, after" for method in METHODS)]
    for number, name in enumerate(names):
        at = np.arange(len(VARIANTS)) + 0.15 * (number - 2)
        middle, low, high = shown[name].T
        axes.errorbar(
            middle,
            at,
            xerr=[middle - low, high - middle],
            fmt="D" if number == 0 else "o",
            color="black" if number == 0 else f"C{number - 1}",
            markersize=4,
            label=name.removesuffix(", after"),
        )
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(VARIANTS)), list(VARIANTS))
    axes.invert_yaxis()
    axes.set_xlabel("ratio to that of the statement itself (95 % over facts)")
    axes.set_title("Influence of variants on the completion, and what training on them does", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def text(about: dict[str, int], raw: dict[str, pd.DataFrame]) -> str:
    scores = pd.read_csv(file_of("scores"))
    before, after = (scores[scores["when"] == when]["loss"].mean() for when in WHEN)
    gained = raw["retraining"].loc["the statement"].mean()
    millions = about["parameters"] / 1e6
    return f"""
A GPT-2 of {about["layers"]} layers x {about["width"]}, {millions:.1f}M parameters, pretrained on half a
million tokens: a very small model, which never saw the language of the translation here. {len(FACTS)} facts,
{SEEDS} seeds of the order of training.

The loss of a query (all tokens of the name, in nats) is {before:.1f} before fine-tuning and {after:.1f} after
it, with the statements in the pool. Retraining finds that a query's own statement lowers it by {gained:.2f}.
Ratios are of means over facts, with 95 % intervals of a bootstrap over facts; *before* and *after* say at
which weights scores were taken; after it, the model has learnt the statements in part. The loss of a
sentence is the sum over its tokens.
"""


def show() -> None:
    raw = columns()
    shown = {name: ratios(values) for name, values in raw.items()}
    variants = pd.DataFrame({"variant": list(VARIANTS)})
    table = variants.assign(**{name: [Interval(*row) for row in values] for name, values in shown.items()})
    of_last = [name for name in table if str(name).endswith(", before")]
    tables = [
        ("Ratios to the statement itself, scores taken after fine-tuning:", table.drop(columns=of_last)),
        ("The same, scores taken before fine-tuning:", table[["variant", "retraining", *of_last]]),
        ("The wordings:", variants.assign(wording=list(VARIANTS.values()))),
    ]
    about = json.loads((DATA / f"{NAME}.json").read_text())
    save_tables(NAME, f"python analysis/paper/{NAME}.py --measure FOLDER", text(about, raw), tables, table)
    save_figure(draw(shown), NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="score and retrain this GPT first")
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
    show()


if __name__ == "__main__":
    main()
