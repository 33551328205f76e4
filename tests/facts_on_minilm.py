"""The smallest experiment on a real pretrained model: four steps on made-up facts."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "task": {"source": "facts", "n_train": 12, "n_test": 4, "seed": 0},
    "model": {"name": "minilm", "dropout": 0.0, "pooling": "mean", "max_length": 32, "seed": 0},
    "tuning": {"name": "last_layers", "layers": 1},
    "run": {
        "seed": 3,
        "design": {"name": "random_subset", "size": 8, "epochs": 2, "batch_size": 4},
        "optimizer": {"name": "adamw", "lr": 1e-4},
    },
}
WITH_WEIGHTS = {**CONFIG, "run": {**CONFIG["run"], "keep_weights": 2}}
