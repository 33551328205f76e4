"""EK-FAC of a small language model here and in kronfluence, side by side, and this project's store.

    python analysis/benchmarks/scale_peers.py FOLDER [--train 400] [--test 40]

The model and the texts are those of scale.py, the parameters the linear layers, which kronfluence treats. A
pass is a forward and backward pass over the training examples in batches of 8. Writes FOLDER/peers.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import peers
import torch
from measuring import Measured, measured
from scale_stages import Case, initial_context
from scale_texts import BATCH
from torch import nn

from simfluence.attribution import ekfac
from simfluence.attribution.adam import adam_similarity
from simfluence.attribution.store import GradientStore
from simfluence.attribution.store_writing import write_store
from simfluence.finetuning.experiment import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=40)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prepared = prepare(Case(1000, options.folder.resolve() / "n-1000").config, "cpu")
    model, train = prepared.model, prepared.task.train[: options.train]
    test, more = prepared.task.test[: options.test], prepared.task.test[options.test : 2 * options.test]
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n]
    chosen = [p for n, p in model.named_parameters() if n.removesuffix(".weight") in names]

    def a_pass() -> None:
        for start in range(0, len(train), BATCH):
            torch.autograd.grad(model.losses(train[start : start + BATCH]).mean(), chosen)

    peers.BATCH = BATCH
    with tempfile.TemporaryDirectory() as folder:
        units = [measured(a_pass)[1]]
        peer = peers.Kronfluence(model, names, train, test, folder)
        _, factors = measured(peer.factors)
        expected, scores = measured(peer.scores)
        del peer
        units.append(measured(a_pass)[1])
        made = {"parameters": names, "batch_size": BATCH}
        found, ours = measured(lambda: ekfac(model, train, test, fisher="empirical", **made).scores)
        units.append(measured(a_pass)[1])
        context = initial_context(model, train, test)
        place = Path(folder) / "store"
        _, writing = measured(lambda: write_store(context, place, **made))
        store = GradientStore(place)

        def stored(examples: list) -> np.ndarray:
            return store.scores(store.project(context.objective, examples, batch_size=BATCH)).scores

        from_store, asking = measured(lambda: stored(test))
        _, again = measured(lambda: stored(more))
        units.append(measured(a_pass)[1])
        exact, inner = measured(lambda: adam_similarity(model, train, test, batch=BATCH, **made).scores)
    unit = sorted(units, key=lambda one: one.cpu)[len(units) // 2]

    def row(what: str, note: str, *parts: Measured) -> dict[str, object]:
        wall, cpu = sum(one.wall for one in parts), sum(one.cpu for one in parts)
        memory = max(one.memory for one in parts)
        passes = cpu / unit.cpu
        return {
            "what": what,
            "seconds": wall,
            "CPU seconds": cpu,
            "passes": passes,
            "MB": memory,
            "note": note,
        }

    rows = [
        row("a forward and backward pass", f"median of {len(units)}", unit),
        row("kronfluence: EK-FAC factors", "", factors),
        row("kronfluence: EK-FAC scores", "", scores),
        row("kronfluence: both", "", factors, scores),
        row("ours: EK-FAC, factors and scores", f"{_agreement(found, expected)} with kronfluence's", ours),
        row("ours: exact inner products in Adam's metric", "", inner),
        row("ours: store written", "", writing),
        row("ours: scores from the store", f"{_agreement(from_store, exact)} with the exact ones", asking),
        row(f"ours: {len(more)} more test examples", "from the store; others begin again", again),
    ]
    of_methods = np.corrcoef(from_store.ravel(), found.ravel())[0, 1]
    about = {
        "train": len(train), "test": len(test), "parameters": sum(p.numel() for p in chosen),
        "rows": rows, "store with EK-FAC": float(of_methods),
    }  # fmt: skip
    (options.folder / "peers.json").write_text(json.dumps(about, indent=1))
    print(json.dumps(about, indent=1))


def _agreement(found: np.ndarray, expected: np.ndarray) -> str:
    scale = (found * expected).sum() / np.square(expected).sum()
    return f"correlation {np.corrcoef(found.ravel(), expected.ravel())[0, 1]:.5f}, scale {scale:.3f}"


if __name__ == "__main__":
    main()
