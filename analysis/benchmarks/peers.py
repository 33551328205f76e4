"""Other libraries on the models of the benchmarks: kronfluence, captum's TracIn, bergson.

They are imported here only (pip install --no-deps captum kronfluence einconv einops opt-einsum; and, into a
folder of its own on PYTHONPATH, bergson simple-parsing docstring-parser ml-dtypes petname jaxtyping, which
runs on a CPU without the other packages that it asks for).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from texts import BATCH
from torch import Tensor, nn

from simfluence.finetuning.classifiers import TextClassifier
from simfluence.finetuning.tasks import TextExample


class Kronfluence:
    """EK-FAC on a copy of the model; the empirical Fisher matrix, damping 0.1 times the mean."""

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


class Bergson:
    """Single examples' gradients of the linear layers of a language model below its output map.

    lm : the Hugging Face model. side : of each layer's projection, to side × side numbers; 0: none.
    folder : for its files.
    """

    def __init__(self, lm: Any, side: int, folder: str | Path) -> None:
        self.lm, self.side, self.folder = lm, side, Path(folder)

    def __call__(self, tokens: list[list[int]]) -> np.ndarray:
        """[example, number] of the mean loss of the tokens."""
        from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
        from datasets import Dataset

        data = Dataset.from_dict({"input_ids": tokens})
        batches = [list(range(i, min(i + BATCH, len(tokens)))) for i in range(0, len(tokens), BATCH)]
        config = IndexConfig(
            run_path=str(self.folder / "bergson"), loss_reduction="mean", projection_dim=self.side
        )
        config.partial_run_path.mkdir(parents=True, exist_ok=True)
        collector = InMemoryCollector(
            model=self.lm.base_model,
            cfg=config,
            processor=GradientProcessor(projection_dim=self.side or None),
            data=data,
            target_modules=None,
        )
        computer = CollectorComputer(
            model=self.lm, data=data, collector=collector, batches=batches, cfg=config
        )
        computer.run_with_collector_hooks()
        return np.array(collector.builder.grad_buffer)


class Captum:
    """TracIn-CP of some layers, with gradients by sample.

    checkpoints : how many; ``load`` puts the weights of one into the model and returns its learning rate.
    """

    def __init__(
        self, model: TextClassifier, layers: Sequence[str], checkpoints: int, load: Callable[..., float]
    ) -> None:
        self.model, self.layers = model, [f"model.{name}" for name in layers]
        self.checkpoints, self.load = list(range(checkpoints)), load

    def scores(self, train: Sequence[TextExample], test: Sequence[TextExample]) -> np.ndarray:
        """[train, test]."""
        from captum.influence import TracInCP

        everything = [*train, *test]
        labels = torch.tensor([example.label for example in everything])
        numbers, n = torch.arange(len(everything)), len(train)
        peer = TracInCP(
            _Numbered(self.model, everything).eval(),
            torch.utils.data.TensorDataset(numbers[:n], labels[:n]),
            self.checkpoints,
            self.load,
            layers=self.layers,
            loss_fn=nn.CrossEntropyLoss(reduction="sum"),
            batch_size=BATCH,
            sample_wise_grads_per_batch=True,
        )
        return peer.influence((numbers[n:], labels[n:])).T.numpy()


class _Numbered(nn.Module):
    """The model, called with the numbers of examples."""

    def __init__(self, model: TextClassifier, examples: Sequence[TextExample]) -> None:
        super().__init__()
        self.model, self.examples = model, examples

    def forward(self, numbers: Tensor) -> Tensor:
        return self.model.outputs([self.examples[i] for i in numbers.tolist()])
