"""EK-FAC and TracIn: how many forward and backward passes they take, here, in kronfluence and in captum.

    python analysis/benchmarks/attribution.py [--train 200] [--test 40]

MiniLM with a head of two classes, all layers trained; made-up texts of 64 tokens. Compared are the linear
layers, which are what kronfluence treats (and captum's gradients by sample); the answers must be the same. A
pass is a forward and backward pass over the same examples with the gradients of the same weights. kronfluence
and captum are imported here only (pip install --no-deps captum kronfluence einconv einops opt-einsum).
"""

from __future__ import annotations

import argparse
import copy
import gc
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from common import environment, write
from torch import Tensor, nn

from simfluence.attribution import (
    Checkpoint,
    EKFACFactors,
    ekfac,
    ekfac_factors,
    influence,
    selected_parameters,
    tracin,
)
from simfluence.finetuning.classifiers import TextClassifier
from simfluence.finetuning.models import load_model
from simfluence.finetuning.tasks import TextExample

BATCH = 32


def made_up_texts(count: int, words: int, seed: int = 0) -> list[TextExample]:
    """Texts of invented words, with labels at random."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    vocabulary = ["".join(rng.choice(syllables, 2)) for _ in range(800)]
    return [
        TextExample(f"{seed}-{i}", "", ((" ".join(rng.choice(vocabulary, words)), ""),), int(rng.integers(2)))
        for i in range(count)
    ]


def linear_layers(model: nn.Module) -> list[str]:
    """All that lie between the input and the loss."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "pooler" not in n]


def passes(model: TextClassifier, examples: Sequence[TextExample], names: Sequence[str]) -> None:
    """One forward and backward pass over all examples."""
    model.eval()
    parameters = list(selected_parameters(model, names).values())
    for start in range(0, len(examples), BATCH):
        losses = model.losses(examples[start : start + BATCH])
        torch.autograd.grad(losses.sum(), parameters)


class Measured:
    """Seconds and the most memory beyond what there was at the start (MB), of a ``with`` block."""

    def __enter__(self) -> Measured:
        gc.collect()
        self._process, self._on = psutil.Process(), True
        self._before = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._start = time.perf_counter(), time.process_time()
        return self

    def _watch(self) -> None:
        while self._on:
            self._most = max(self._most, self._process.memory_info().rss)
            time.sleep(0.05)

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = (
            time.perf_counter() - self._start[0],
            time.process_time() - self._start[1],
        )
        self._on = False
        self._thread.join()
        self.memory = (self._most - self._before) / 1e6


def measured(task: Callable[[], Any]) -> tuple[Any, Measured]:
    with Measured() as found:
        result = task()
    return result, found


# --------------------------------------------------------------------------------- kronfluence


class Peer:
    """kronfluence on a copy of the model; the empirical Fisher matrix, damping 0.1 times the mean."""

    def __init__(self, model: TextClassifier, names: list[str], train: Any, test: Any, folder: str) -> None:
        from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model

        everything, copied = [*train, *test], copy.deepcopy(model)

        class Losses(Task):
            def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
                return copied.losses([everything[i] for i in batch.tolist()]).sum()

            def compute_measurement(self, batch: Any, model: Any) -> Tensor:
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self) -> list[str]:
                return names

            def get_attention_mask(self, batch: Any) -> Tensor:
                return copied.masks([everything[i] for i in batch.tolist()])[0]

        wrapped = prepare_model(copied, Losses())
        self.analyzer = Analyzer("peer", wrapped, Losses(), cpu=True, disable_tqdm=True, output_dir=folder)
        self.numbers, self.train = torch.arange(len(everything)), len(train)
        self.factor_args = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        self.score_args = ScoreArguments(damping_factor=None)

    def factors(self) -> None:
        self.analyzer.fit_all_factors(
            "factors", self.numbers[: self.train], BATCH, factor_args=self.factor_args
        )

    def scores(self) -> np.ndarray:
        """[train, test]."""
        self.analyzer.compute_pairwise_scores(
            "scores", "factors", self.numbers[self.train :], self.numbers[: self.train], BATCH,
            per_device_train_batch_size=BATCH, score_args=self.score_args,
        )  # fmt: skip
        return self.analyzer.load_pairwise_scores("scores")["all_modules"].T.numpy()


# ------------------------------------------------------------------------------------- sections


class Table:
    """Rows of seconds, of which some are the unit: the machine may be shared, so that it is measured between
    the others, and its median taken."""

    def __init__(self, what: str, unit: Callable[[], Any]) -> None:
        self.what, self._unit = what, unit
        self._units: list[Measured] = []
        self._rows: list[tuple[str, float, float, float, str]] = []
        unit()
        self.unit()

    def unit(self) -> None:
        self._units.append(measured(self._unit)[1])

    def add(self, what: str, *found: Measured, note: str = "") -> float:
        """Seconds; of several, the sum."""
        wall, cpu = sum(f.wall for f in found), sum(f.cpu for f in found)
        self._rows.append((what, wall, cpu, max(f.memory for f in found), note))
        print(self._rows[-1], flush=True)
        return wall

    def frame(self) -> pd.DataFrame:
        base = sorted(self._units, key=lambda found: found.wall)[len(self._units) // 2]
        first = (self.what, base.wall, base.cpu, base.memory, f"median of {len(self._units)}")
        return pd.DataFrame(
            {
                "what": what,
                "seconds": wall,
                "passes": wall / base.wall,
                "passes by CPU time": cpu / base.cpu,
                "memory MB": memory,
                "note": note,
            }
            for what, wall, cpu, memory, note in (first, *self._rows)
        )


def minilm(n_train: int, n_test: int) -> tuple[TextClassifier, list[TextExample], list[TextExample]]:
    model = load_model("minilm", SimpleNamespace(n_labels=2), max_length=64)
    examples = made_up_texts(n_train + n_test, words=80)
    assert {model.length(example) for example in examples} == {64}
    return model, examples[:n_train], examples[n_train:]


def against_kronfluence(n_train: int, n_test: int) -> pd.DataFrame:
    model, train, test = minilm(n_train, n_test)
    names = linear_layers(model)
    table = Table("a forward and backward pass", lambda: passes(model, [*train, *test], names))
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(model, names, train, test, folder)
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
    """TracIn-CP of the linear layers; captum with its gradients by sample."""
    from captum.influence import TracInCP

    model, train, test = minilm(n_train, n_test)
    names, everything = linear_layers(model), [*train, *test]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    table = Table(
        f"{checkpoints} forward and backward passes",
        lambda: [passes(model, everything, names) for _ in range(checkpoints)],
    )

    def load(module: Any, step: int) -> float:
        """Made-up weights, and rates."""
        model.load_state_dict(
            {
                n: value * (1 - 0.01 * step) if value.is_floating_point() else value
                for n, value in start.items()
            }
        )
        return 0.1 / (1 + step)

    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, numbers: Tensor) -> Tensor:
            return model.outputs([everything[i] for i in numbers.tolist()])

    def pairs(numbers: range) -> tuple[Tensor, Tensor]:
        return torch.tensor(numbers), torch.tensor([everything[i].label for i in numbers])

    def theirs() -> np.ndarray:
        peer = TracInCP(
            Numbered().eval(),
            torch.utils.data.TensorDataset(*pairs(range(n_train))),
            list(range(checkpoints)),
            load,
            layers=[f"model.{name}" for name in names],
            loss_fn=nn.CrossEntropyLoss(reduction="sum"),
            batch_size=BATCH,
            sample_wise_grads_per_batch=True,
        )
        return peer.influence(pairs(range(n_train, len(everything)))).T.numpy()

    expected, their_time = measured(theirs)
    load(model, 0)
    table.unit()
    ours = [
        Checkpoint(step, 0.1 / (1 + step), lambda module, step=step: load(module, step))
        for step in range(checkpoints)
    ]
    found, our_time = measured(
        lambda: tracin(model, train, test, ours, parameters=names, batch_size=BATCH).scores
    )
    table.unit()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    table.add("captum: TracInCP", their_time)
    note = (
        f"{their_time.wall / our_time.wall:.2f} x faster; {_said(_agreement(found, expected))} with captum's"
    )
    table.add("ours: TracIn-CP", our_time, note=note)
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


class Words:
    """A tokenizer for made-up numbers of tokens."""

    def __call__(self, first: list[str], second: Any = None, **options: Any) -> dict[str, Tensor]:
        rows = [[int(word) for word in text.split()] for text in first]
        ids = torch.tensor(rows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def small_bert(width: int) -> TextClassifier:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=512,
    )  # fmt: skip
    return TextClassifier(BertModel(config, add_pooling_layer=False), Words(), 2, max_length=512)


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


def made_up_numbers(count: int, tokens: int) -> list[TextExample]:
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(3, 100, tokens))) for _ in range(count)]
    return [TextExample(str(i), "", ((text, ""),), i % 2) for i, text in enumerate(texts)]


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
