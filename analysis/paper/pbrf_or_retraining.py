"""What influence predicts better: the proximal Bregman response (PBRF) or retraining; adding or subtracting.

    python analysis/paper/pbrf_or_retraining.py --measure    trains and retrains, about 5 minutes on one core
    python analysis/paper/pbrf_or_retraining.py              remakes tables and figures from what was measured

Small networks (two hidden layers of 32) on two of scikit-learn's bundled sets, 300 training examples, 20
passes of SGD with momentum. For some training examples, the change of every test loss when the example's
weight goes from 1 to 0 (subtracted) or to 2 (added), as four truths have it:

    PBRF                     the optimum of the proximal objective at the trained weights
    warm start               ten more passes from the trained weights on; mean over orders of the examples
    retraining, same seed    from the same initial weights, in the same order
    retraining, mean         the same from other initial weights and in other orders; mean over seeds

A change is that against training with weight 1, in the same order from the same weights. Scores are those at
the trained weights of the first seed; damping of G is (1 − momentum)/Σ η: along directions of less curvature
the run had no time to converge.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from protocol import RESULTS
from reporting import bootstrap_mean, write_table
from safetensors.numpy import load_file, save_file
from sklearn import datasets
from torch import nn

from simfluence.attribution import (
    Classification,
    Regression,
    ekfac,
    ekfac_factors,
    gradient_similarity,
    influence,
    metagradients,
    proximal_bregman_response,
)
from simfluence.attribution.inverse import ConvergenceWarning
from simfluence.curriculum import Curriculum

mpl.use("Agg")
import matplotlib.pyplot as plt

DATA = RESULTS / "data"
SETS = ("diabetes", "cancer")
TRAIN, TEST, SOURCES = 300, 20, 24
RATE, MOMENTUM, EPOCHS, MORE_EPOCHS, BATCH, SEEDS = 0.03, 0.9, 20, 10, 32, 6
SIGNS = {"subtract": 0.0, "add": 2.0}
TRUTHS = ("PBRF", "warm start", "retraining, same seed", "retraining, mean")
SCORES = ("gradient dot", "EK-FAC", "influence, exact G", "metagradients")


@dataclass(frozen=True)
class Problem:
    """A network with its initial weights, and its examples."""

    objective: Any
    train: list[Any]
    test: list[Any]


def problem(name: str, seed: int) -> Problem:
    """The examples are the same for all seeds; the network's initial weights are the seed's."""
    x, y = {"diabetes": datasets.load_diabetes, "cancer": datasets.load_breast_cancer}[name](return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[: TRAIN + TEST]
    x, regression = (x - x.mean(0)) / x.std(0), name == "diabetes"
    y = (y - y.mean()) / y.std() if regression else y
    examples = [
        (torch.from_numpy(x[i]), torch.tensor([y[i]]) if regression else torch.tensor(int(y[i])))
        for i in order
    ]
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Linear(x.shape[1], 32),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.Tanh(),
        nn.Linear(32, 1 if regression else 2),
    ).double()
    objective = (Regression if regression else Classification)(module)
    return Problem(objective, examples[:TRAIN], examples[TRAIN:])


def curriculum(seed: int, epochs: int) -> Curriculum:
    """Passes over all training examples, each in an order of its own."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(TRAIN) for _ in range(epochs)]
    batches = [order[start : start + BATCH] for order in passes for start in range(0, TRAIN, BATCH)]
    return Curriculum.from_batches(batches, TRAIN)


def train(
    of: Problem, batches: Curriculum, start: dict[str, torch.Tensor], weights: np.ndarray
) -> np.ndarray:
    """The test losses after training from ``start``, which the network has then."""
    of.objective.module.load_state_dict(start)
    optimizer = torch.optim.SGD(of.objective.module.parameters(), lr=RATE, momentum=MOMENTUM)
    for batch in batches:
        optimizer.zero_grad()
        losses = of.objective.losses([of.train[i] for i in batch])
        ((torch.as_tensor(weights[batch]) * losses).sum() / len(batch)).backward()
        optimizer.step()
    with torch.no_grad():
        return of.objective.losses(of.test).numpy()


def state(of: Problem) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.objective.module.state_dict().items()}


# ------------------------------------------------------------------------------------- measuring


def changes(of: Problem, batches: Curriculum, start: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Sign → the change of the test losses [source, test] by another weight of each source."""
    before = train(of, batches, start, np.ones(TRAIN))
    found = {}
    for sign, weight in SIGNS.items():
        rows = []
        for source in range(SOURCES):
            weights = np.ones(TRAIN)
            weights[source] = weight
            rows.append(train(of, batches, start, weights) - before)
        found[sign] = np.stack(rows)
    return found


def measure(name: str) -> None:
    """data/pbrf_or_retraining-NAME.safetensors: "truth/sign" → change of the loss, "score" → predicted change
    of adding, [source, test]."""
    file = DATA / f"pbrf_or_retraining-{name}.safetensors"
    if file.exists():
        return
    found: dict[str, np.ndarray] = {}
    of_seeds = []
    for seed in range(SEEDS):
        of = problem(name, seed)
        of_seeds.append(changes(of, curriculum(seed, EPOCHS), state(of)))
        _say(f"{name}: retraining, seed {seed}")
    of = problem(name, 0)
    initial = state(of)
    train(of, curriculum(0, EPOCHS), initial, np.ones(TRAIN))
    trained = state(of)
    warm = [changes(of, curriculum(100 + order, MORE_EPOCHS), trained) for order in range(SEEDS)]
    _say(f"{name}: warm starts")
    of.objective.module.load_state_dict(trained)
    damping = (1 - MOMENTUM) / (RATE * len(curriculum(0, EPOCHS)))
    for sign, weight in SIGNS.items():
        epsilon = (weight - 1) / TRAIN
        response = proximal_bregman_response(
            of.objective, of.train, of.test, damping=damping, epsilon=epsilon, sources=range(SOURCES),
            tolerance=1e-3,
        )  # fmt: skip
        _say(f"{name}: PBRF, {sign}")
        found[f"PBRF/{sign}"] = -epsilon * response.scores
        found[f"retraining, same seed/{sign}"] = of_seeds[0][sign]
        found[f"retraining, mean/{sign}"] = np.mean([each[sign] for each in of_seeds], 0)
        found[f"warm start/{sign}"] = np.mean([each[sign] for each in warm], 0)
    found |= predictions(of, damping, initial)
    DATA.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value, dtype=np.float32) for key, value in found.items()}, file)


def predictions(of: Problem, damping: float, initial: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Score → the predicted change of the loss by adding each source [source, test]; without units for
    gradient dot."""
    sources = of.train[:SOURCES]
    factors = ekfac_factors(of.objective, of.train * 10)  # ten labels drawn for each example: less noise
    scores = {
        "gradient dot": gradient_similarity(of.objective, sources, of.test),
        "EK-FAC": ekfac(of.objective, sources, of.test, damping=damping, factors=factors),
        "influence, exact G": influence(of.objective, sources, of.test, damping=damping, curvature=of.train),
    }
    found = {name: -each.scores / TRAIN for name, each in scores.items()}
    batches = curriculum(0, EPOCHS)
    of.objective.module.load_state_dict(initial)
    through = metagradients(
        of.objective, of.train, of.test, batches, optimizer={"class": "SGD", "momentum": MOMENTUM},
        rates=np.full(len(batches), RATE),
    )  # fmt: skip
    return found | {"metagradients": -through.scores[:SOURCES]}


# --------------------------------------------------------------------------------------- showing


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's over sources, [test]."""
    a, b = (values - values.mean(0) for values in (one.astype(float), other.astype(float)))
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """How scores predict each truth, and how adding mirrors subtracting."""
    predicted, mirrored = [], []
    for name in SETS:
        data = load_file(DATA / f"pbrf_or_retraining-{name}.safetensors")
        for truth in TRUTHS:
            add, subtract = data[f"{truth}/add"], data[f"{truth}/subtract"]
            about = {"set": name, "truth": truth}
            for score in SCORES:
                for sign, change, direction in (("add", add, 1), ("subtract", subtract, -1)):
                    row = {**about, "score": score, "edit": sign, "sources": SOURCES, "test examples": TEST}
                    mean, low, high = bootstrap_mean(correlations(direction * data[score], change))
                    predicted.append(row | {"Pearson": mean, "low": low, "high": high})
            mean, low, high = bootstrap_mean(correlations(add, -subtract))
            ratio, ratio_low, ratio_high = bootstrap_mean(np.log(np.std(subtract, 0) / np.std(add, 0)))
            row = {**about, "Pearson of add and −subtract": mean, "low": low, "high": high}
            row |= {"size of subtract / add": np.exp(ratio), "ratio low": np.exp(ratio_low)}
            mirrored.append(row | {"ratio high": np.exp(ratio_high), "test examples": TEST})
    return pd.DataFrame(predicted).round(3), pd.DataFrame(mirrored).round(3)


def draw(predicted: pd.DataFrame) -> None:
    """One panel a set: bars of the scores over the truths, adding and subtracting side by side."""
    figure, panels = plt.subplots(1, len(SETS), figsize=(11, 4), sharey=True, layout="constrained")
    for axes, name in zip(panels, SETS, strict=True):
        for number, score in enumerate(SCORES):
            for shift, sign in enumerate(("add", "subtract")):
                rows = predicted[(predicted[["set", "score", "edit"]] == [name, score, sign]).all(axis=1)]
                rows = rows.set_index("truth").loc[list(TRUTHS)]
                at = np.arange(len(TRUTHS)) + (2 * number + shift - 3.5) * 0.1
                errors = [rows["Pearson"] - rows["low"], rows["high"] - rows["Pearson"]]
                axes.bar(
                    at, rows["Pearson"], 0.09, yerr=errors, color=f"C{number}", alpha=1 - 0.5 * shift,
                    error_kw={"elinewidth": 0.8}, label=f"{score}, {sign}",
                )  # fmt: skip
        axes.set_xticks(range(len(TRUTHS)), [truth.replace(", ", ",\n") for truth in TRUTHS])
        axes.set_title(f"{name}: {SOURCES} examples added or subtracted one by one", fontsize=10)
        axes.set_xlabel("truth")
        axes.axhline(0, color="black", linewidth=0.5)
    panels[0].set_ylabel("Pearson correlation over examples\n(mean over test examples, 95 % interval)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, fontsize=8, loc="outside lower center", frameon=False)
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        figure.savefig(RESULTS / f"pbrf_or_retraining.{kind}", dpi=150, metadata=metadata)
    plt.close(figure)


def show() -> None:
    """The tables and figures from what was measured."""
    predicted, mirrored = tables()
    about = (
        f"Networks with two hidden layers of 32 on {TRAIN} examples, {EPOCHS} passes of SGD (rate {RATE},"
        f" momentum {MOMENTUM}, batches of {BATCH}): small models. Weight 1 → 2 (add) or 1 → 0 (subtract) of"
        f" {SOURCES} training examples, one at a time; Pearson correlations over these, mean over {TEST} test"
        " examples with a 95 % bootstrap interval over test examples. Warm starts: mean of"
        f" {SEEDS} orders; retraining, mean: {SEEDS} seeds."
    )
    wide = predicted.assign(
        shown=[f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in predicted[["Pearson", "low", "high"]].to_numpy()]
    ).pivot_table(
        index=["set", "truth", "edit"], columns="score", values="shown", aggfunc="first", sort=False
    )
    write_table(
        RESULTS / "pbrf_or_retraining", predicted, "PBRF or retraining, adding or subtracting",
        "python analysis/paper/pbrf_or_retraining.py --measure",
        [about, wide.reset_index(), "Is adding the mirror image of subtracting?", mirrored],
    )  # fmt: skip
    mirrored.to_csv(RESULTS / "pbrf_or_retraining_mirror.csv", index=False)
    draw(predicted)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    if parser.parse_args().measure:
        _say(
            f"{len(SETS)} sets, each {SOURCES} × 2 × {2 * SEEDS} trainings of small networks: about 5 minutes"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("default", ConvergenceWarning)
            for name in SETS:
                measure(name)
    show()


if __name__ == "__main__":
    main()
