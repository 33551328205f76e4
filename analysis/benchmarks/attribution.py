"""EK-FAC and TracIn: how many forward and backward passes they take, here, in kronfluence and in captum.

    python analysis/benchmarks/attribution.py [--train 200] [--test 40]

MiniLM with a head of two classes, all layers trained; made-up texts of 64 tokens. Compared are the linear
layers, which are what kronfluence treats (and captum's gradients by sample); the answers must be the same. A
pass is a forward and backward pass over the same examples with the gradients of the same weights.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from common import environment, write
from measuring import Measured, Table, measured
from peers import Captum, Kronfluence
from texts import BATCH, linear_layers, made_up_numbers, minilm, passes, small_bert

from simfluence.attribution import (
    Checkpoint,
    EKFACFactors,
    ekfac,
    ekfac_factors,
    influence,
    selected_parameters,
    tracin,
)


def against_kronfluence(n_train: int, n_test: int) -> pd.DataFrame:
    model, train, test = minilm(n_train, n_test)
    names = linear_layers(model)
    table = Table("a forward and backward pass", lambda: passes(model, [*train, *test], names))
    with tempfile.TemporaryDirectory() as folder:
        peer = Kronfluence(model, names, train, test, folder)
        _, their_factors = measured(peer.factors)
        table.unit()
        expected, their_scores = measured(peer.scores)
        del peer
    table.unit()
    options: dict[str, Any] = {"batch_size": BATCH}
    made: dict[str, Any] = {"parameters": names, **options}
    factors, our_factors = measured(lambda: ekfac_factors(model, train, fisher="empirical", **made))
    exact, our_scores = measured(lambda: ekfac(model, train, test, factors=factors, **options).scores)
    table.unit()
    low, of_rank = measured(lambda: ekfac(model, train, test, factors=factors, rank=32, **options).scores)
    one, one_call = measured(lambda: ekfac(model, train, test, fisher="empirical", **made).scores)
    _, true = measured(lambda: ekfac(model, train, test, **made).scores)
    table.unit()
    for found in (exact, one):
        same = _agreement(found, expected)
        assert same["correlation"] > 0.999, same
        assert abs(same["scale"] - 1) < 0.01, same
    table.add("kronfluence: factors", their_factors)
    table.add("kronfluence: scores", their_scores)
    theirs = table.add("kronfluence: factors and scores", their_factors, their_scores)
    table.add("ours: factors", our_factors)
    table.add("ours: scores", our_scores, note=_said(_agreement(exact, expected)) + " with kronfluence's")

    def faster(*found: Measured) -> str:
        return f"{theirs / sum(f.wall for f in found):.2f} x faster"

    table.add(
        "ours: factors and scores, two calls", our_factors, our_scores, note=faster(our_factors, our_scores)
    )
    note = f"{faster(one_call)}; {_said(_agreement(one, expected))} with kronfluence's"
    table.add("ours: factors and scores, one call", one_call, note=note)
    table.add(
        "the same, labels drawn",
        true,
        note=f"{faster(true)}; training gradients are not those of the factors",
    )
    table.add("ours: scores, rank 32", of_rank, note=_said(_agreement(low, exact)) + " with the exact ones")
    return table.frame()


def against_captum(n_train: int, n_test: int, checkpoints: int) -> pd.DataFrame:
    """TracIn-CP of the linear layers, at made-up weights and rates."""
    model, train, test = minilm(n_train, n_test)
    names, everything = linear_layers(model), [*train, *test]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    table = Table(
        f"{checkpoints} forward and backward passes",
        lambda: [passes(model, everything, names) for _ in range(checkpoints)],
    )

    def load(module: Any, step: int) -> float:
        shrunk = {n: v * (1 - 0.01 * step) if v.is_floating_point() else v for n, v in start.items()}
        model.load_state_dict(shrunk)
        return 0.1 / (1 + step)

    peer = Captum(model, names, checkpoints, load)
    expected, their_time = measured(lambda: peer.scores(train, test))
    load(model, 0)
    table.unit()
    ours = [Checkpoint(step, 0.1 / (1 + step), partial(load, step=step)) for step in range(checkpoints)]
    options: dict[str, Any] = {"parameters": names, "batch_size": BATCH}
    found, our_time = measured(lambda: tracin(model, train, test, ours, **options).scores)
    table.unit()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    table.add("captum: TracInCP", their_time)
    faster, same = their_time.wall / our_time.wall, _said(_agreement(found, expected))
    table.add("ours: TracIn-CP", our_time, note=f"{faster:.2f} x faster; {same} with captum's")
    return table.frame()


def influence_of_a_layer(n_train: int, n_test: int) -> pd.DataFrame:
    """Exact Gauss-Newton influence of MiniLM's last layer and head."""
    model, train, test = minilm(n_train, n_test)
    names = ["encoder.encoder.layer.5", "head"]
    table = Table("a forward and backward pass", lambda: passes(model, [*train, *test], names))
    found, taken = measured(lambda: influence(model, train, test, parameters=names, batch_size=BATCH))
    table.unit()
    size = sum(parameter.numel() for parameter in selected_parameters(model, names).values())
    table.add(
        f"influence_{found.provenance['solver']}, {size} parameters",
        taken,
        note=f"residual {found.provenance['residual']:.1e}",
    )
    return table.frame()


def of_rank_32() -> pd.DataFrame:
    """Scores of few and many queries, with all of each matrix and with rank 32 of it."""
    model, rows = small_bert(256), []
    for queries in (40, 200, 800):
        examples = made_up_numbers(128 + queries, 64)
        train, test = examples[:128], examples[128:]
        factors = ekfac_factors(model, train, batch_size=BATCH)
        scores = partial(ekfac, model, train, test, factors=factors, batch_size=BATCH)
        (exact, of_exact), (low, of_low) = (
            measured(lambda scores=scores, rank=rank: scores(rank=rank).scores) for rank in (None, 32)
        )
        rows.append(
            {
                "queries": queries,
                "exact, seconds": of_exact.wall,
                "rank 32, seconds": of_low.wall,
                "exact, MB": of_exact.memory,
                "rank 32, MB": of_low.memory,
                "error": _said(_agreement(low, exact)),
            }
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def growth(repeats: int) -> pd.DataFrame:
    """Seconds against one size at a time, and the slope of their logarithms over the upper half."""
    usual = {"train": 64, "queries": 16, "tokens": 32, "width": 128}
    sizes: dict[str, list[int]] = {
        "train": [64, 128, 256],
        "queries": [16, 64, 256],
        "tokens": [32, 64, 128],
        "width": [128, 256, 512],
    }
    rows = []
    for what, values in sizes.items():
        for value in values:
            factor, score, parameters = _sized({**usual, what: value}, repeats)
            rows.append(
                {
                    "size": what,
                    "value": value,
                    "parameters": parameters,
                    "factors, seconds": factor,
                    "scores, seconds": score,
                }
            )
            print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    for column in ("factors", "scores"):
        frame[f"{column}, slope"] = np.nan
        for what in sizes:
            mine = frame["size"] == what
            against = "parameters" if what == "width" else "value"
            x, y = np.log(frame.loc[mine, against])[-2:], np.log(frame.loc[mine, f"{column}, seconds"])[-2:]
            frame.loc[frame.index[mine][-1], f"{column}, slope"] = np.diff(y)[0] / np.diff(x)[0]
    return frame


def _sized(size: dict[str, int], repeats: int) -> tuple[float, float, int]:
    """Least seconds for factors and scores, and the number of parameters."""
    examples = made_up_numbers(size["train"] + size["queries"], size["tokens"])
    model, n = small_bert(size["width"]), size["train"]
    for example in examples:
        model.length(example)
    factors: EKFACFactors | None = None
    factor, score = [], []
    for _ in range(repeats):
        factors, found = measured(lambda: ekfac_factors(model, examples[:n], batch_size=BATCH))
        factor.append(found.wall)
        _, found = measured(
            lambda made=factors: ekfac(model, examples[:n], examples[n:], factors=made, batch_size=BATCH)
        )
        score.append(found.wall)
    return min(factor), min(score), sum(p.numel() for p in model.parameters())


def _agreement(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    return {
        "correlation": float(np.corrcoef(found.ravel(), expected.ravel())[0, 1]),
        "scale": float((found * expected).sum() / (expected**2).sum()),
        "error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
    }


def _said(found: dict[str, float]) -> str:
    return (
        f"correlation {found['correlation']:.6f}, scale {found['scale']:.4f},"
        f" relative error {found['error']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=200, help="training examples")
    parser.add_argument("--test", type=int, default=40, help="test examples")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # kronfluence's
    started = environment()
    notes = [
        "Passes are wall seconds over those of a forward and backward pass over the same examples (training"
        " and test), with gradients of the same weights.",
        "Memory is the most resident memory beyond what there was before, sampled every 50 ms; what one part"
        " has freed may be used by the next without being seen.",
        "In one call with the right labels in the Fisher matrix (as in kronfluence here), the training"
        " gradients of factors and scores are the same and computed once; with drawn labels they are not.",
        "Growth is of a BERT of two layers with all its parameters (embeddings and norms too), from 64"
        " training examples, 16 queries, 32 tokens and width 128; slopes are of the last two rows of a size,"
        " for the width against the number of parameters.",
    ]
    sections = {
        f"EK-FAC of MiniLM, {options.train} + {options.test} texts of 64 tokens": against_kronfluence(
            options.train, options.test
        )
    }
    write("attribution", sections, notes, started)
    sections["TracIn-CP of MiniLM, 64 + 16 texts of 64 tokens, 4 checkpoints"] = against_captum(64, 16, 4)
    write("attribution", sections, notes, started)
    sections["Influence with MiniLM's last layer, 200 + 40 texts of 64 tokens"] = influence_of_a_layer(
        200, 40
    )
    write("attribution", sections, notes, started)
    sections["Queries of rank 32, BERT of two layers and width 256, 128 training examples of 64 tokens"] = (
        of_rank_32()
    )
    write("attribution", sections, notes, started)
    sections["Growth"] = growth(2)
    write("attribution", sections, notes, started)


if __name__ == "__main__":
    main()
