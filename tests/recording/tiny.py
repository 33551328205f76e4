"""A training small enough to be run hundreds of times: what the recording tests train."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

N_TRAIN, N_TEST, BATCH = 24, 6, 4


def examples(n: int, seed: int, prefix: str) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"{prefix}{i}",
            "group": f"g{i % 3}",
            "x": rng.normal(size=5).tolist(),
            "y": int(rng.integers(3)),
        }
        for i in range(n)
    ]


TRAIN, TEST = examples(N_TRAIN, 0, "train-"), examples(N_TEST, 1, "test-")


def new_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def per_example(model: nn.Module, batch: list[dict]) -> torch.Tensor:
    logits = model(torch.tensor([example["x"] for example in batch]))
    labels = torch.tensor([example["y"] for example in batch])
    return nn.functional.cross_entropy(logits, labels, reduction="none")


@dataclass
class Training:
    """Model, optimizer, scheduler and the order of examples: everything seeded."""

    seed: int = 0
    steps: int = 30
    model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 (what users' code draws from)
        self.model = new_model(self.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.1, self.steps)
        self.order = np.random.default_rng(self.seed)

    @property
    def state(self) -> dict:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "order": self.order,
        }

    def step(self) -> tuple[list[str], float]:
        """One optimizer step that draws from all random states there are."""
        batch = [TRAIN[i] for i in self.order.choice(N_TRAIN, BATCH, replace=False)]
        loss = per_example(self.model.train(), batch).mean()
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.model.parameters():
            parameter.grad += 0.01 * torch.randn_like(parameter)
            parameter.grad *= 1 + 0.01 * np.random.rand()  # noqa: NPY002
        self.optimizer.step()
        self.scheduler.step()
        return [example["id"] for example in batch], loss.item()


def bits(model: nn.Module) -> bytes:
    return b"".join(values.numpy().tobytes() for values in model.state_dict().values())
