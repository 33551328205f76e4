"""A small language model in other libraries and here: EK-FAC, and stores of projected gradients.

    PYTHONPATH=WITH_BERGSON python analysis/benchmarks/scale_peers.py FOLDER [--train 256] [--test 32]

The model and the texts are those of scale.py, the parameters the linear layers below the output map, which
kronfluence and bergson treat. A pass is a forward and backward pass over the training examples in batches of
8; it is measured between the others. Writes FOLDER/peers.json. What peers.py says how to install is needed.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from measuring import Measured, measured
from scale_stages import OPTIMIZER, Case, initial_context
from scale_texts import BATCH
from torch import nn
from transformers import AutoTokenizer

from simfluence.attribution import ekfac
from simfluence.attribution.adam import adam_similarity
from simfluence.attribution.gradients import gradient_similarity
from simfluence.attribution.store import GradientStore
from simfluence.attribution.store_writing import write_store
from simfluence.finetuning.experiment import prepare

SIDE = 16
"""bergson's projection: 256 numbers a layer, 3584 of all, beside 4096 here."""


class Comparison:
    """The model, some of its examples, and a table of what each method took."""

    def __init__(self, folder: Path, train: int, test: int) -> None:
        prepared = prepare(Case(1000, folder / "n-1000").config, "cpu")
        self.model, self.train = prepared.model, prepared.task.train[:train]
        self.test = prepared.task.test[:test]
        modules = self.model.named_modules()
        self.names = [n for n, m in modules if isinstance(m, nn.Linear) and "lm_head" not in n]
        named = self.model.named_parameters()
        self.chosen = [p for name, p in named if name.removesuffix(".weight") in self.names]
        self.options: dict[str, Any] = {"parameters": self.names, "batch_size": BATCH}
        self._rows: list[tuple[str, str, list[Measured]]] = []
        self._units: list[Measured] = []
        self._pass()

    def _pass(self) -> None:
        for start in range(0, len(self.train), BATCH):
            losses = self.model.losses(self.train[start : start + BATCH])
            torch.autograd.grad(losses.mean(), self.chosen)

    def timed(self, task: Callable[[], Any]) -> tuple[Any, Measured]:
        """What a task gives and took; a pass is measured after it."""
        found = measured(task)
        self._units.append(measured(self._pass)[1])
        return found

    def add(self, what: str, *parts: Measured, note: str = "") -> None:
        self._rows.append((what, note, list(parts)))

    def rows(self) -> list[dict[str, object]]:
        unit = sorted(self._units, key=lambda one: one.cpu)[len(self._units) // 2]
        first = ("a forward and backward pass", f"median of {len(self._units)}", [unit])
        return [
            {
                "what": what,
                "CPU seconds": sum(one.cpu for one in parts),
                "passes": sum(one.cpu for one in parts) / unit.cpu,
                "note": note,
            }
            for what, note, parts in (first, *self._rows)
        ]


def against_kronfluence(compared: Comparison, folder: str) -> np.ndarray:
    """EK-FAC with the empirical Fisher matrix; our scores."""
    model, names, train, test = compared.model, compared.names, compared.train, compared.test
    peer = peers.Kronfluence(model, names, train, test, folder)
    _, factors = compared.timed(peer.factors)
    expected, scores = compared.timed(peer.scores)
    del peer
    found, ours = compared.timed(
        lambda: ekfac(model, train, test, fisher="empirical", **compared.options).scores
    )
    compared.add("kronfluence: EK-FAC, factors and scores", factors, scores)
    compared.add("ours: EK-FAC", ours, note=f"{agreement(found, expected)} with kronfluence's")
    return found


def against_bergson(compared: Comparison, folder: str) -> None:
    """Projected plain gradients, and how near their inner products are to exact ones."""
    model, train, test = compared.model, compared.train, compared.test
    tokens = partial(token_ids, AutoTokenizer.from_pretrained(model.lm.config.name_or_path))
    whole = peers.Bergson(model.lm, 0, folder)(tokens([*train[:8], *test[:8]]))
    exact, ours = compared.timed(lambda: gradient_similarity(model, train, test, **compared.options).scores)
    same = agreement(exact[:8, :8], whole[:8] @ whole[8:].T)
    compared.add("ours: exact inner products", ours, note=f"{same} with bergson's of 8 by 8 examples")
    peer = peers.Bergson(model.lm, SIDE, folder)
    index, writing = compared.timed(lambda: peer(tokens(train)))
    scores, asking = compared.timed(lambda: index @ peer(tokens(test)).T)
    compared.add("bergson: gradients stored", writing, note=f"{index.shape[1]} numbers each")
    compared.add(
        f"bergson: scores of {len(test)} tests", asking, note=f"{agreement(scores, exact)} with exact"
    )
    stored(compared, Path(folder) / "plain", {"class": "SGD"}, exact)


def stored(compared: Comparison, folder: Path, optimizer: dict[str, Any], exact: np.ndarray) -> np.ndarray:
    """Our store in an optimizer's metric, and its scores."""
    context = initial_context(compared.model, compared.train, compared.test, optimizer=optimizer)
    _, writing = compared.timed(lambda: write_store(context, folder, **compared.options))
    store = GradientStore(folder)

    def scores(examples: Sequence[Any]) -> np.ndarray:
        return store.scores_of(store.project(context.objective, examples, batch_size=BATCH)).scores

    found, asking = compared.timed(lambda: scores(compared.test))
    metric = "plain" if optimizer["class"] == "SGD" else "Adam's metric"
    compared.add(f"ours: store written, {metric}", writing, note=f"{store.manifest.k} numbers each")
    note = f"{agreement(found, exact)} with exact"
    compared.add(f"ours: scores of {len(compared.test)} tests from it", asking, note=note)
    return found


def token_ids(tokenizer: Any, examples: Sequence[Any]) -> list[list[int]]:
    return [[*tokenizer(example.text)["input_ids"], tokenizer.eos_token_id] for example in examples]


def agreement(found: np.ndarray, expected: np.ndarray) -> str:
    scale = (found * expected).sum() / np.square(expected).sum()
    return f"correlation {np.corrcoef(found.ravel(), expected.ravel())[0, 1]:.5f}, scale {scale:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=256)
    parser.add_argument("--test", type=int, default=32)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    peers.BATCH = BATCH
    compared = Comparison(options.folder.resolve(), options.train, options.test)
    with tempfile.TemporaryDirectory() as folder:
        of_ekfac = against_kronfluence(compared, folder)
        against_bergson(compared, folder)
        exact, inner = compared.timed(
            lambda: (
                adam_similarity(
                    compared.model, compared.train, compared.test, batch=BATCH, **compared.options
                ).scores
            )
        )
        compared.add("ours: exact inner products in Adam's metric", inner)
        found = stored(compared, Path(folder) / "adam", OPTIMIZER, exact)
    about = {
        "train": options.train,
        "test": options.test,
        "parameters": sum(p.numel() for p in compared.chosen),
        "rows": compared.rows(),
        "correlation of EK-FAC with the store": float(np.corrcoef(found.ravel(), of_ekfac.ravel())[0, 1]),
    }
    (options.folder / "peers.json").write_text(json.dumps(about, indent=1))
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
