"""A hundred near-copies of one picture and a single copy of another, learnt by a small network, and recorded.

Pictures are vectors in 20 dimensions: dogs lie around one direction, the cat in another, birds around a
third. Each is to be told apart from noise. A run draws some of the dogs and birds, and takes the cat or not;
one takes all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from simfluence import RunRecorder, RunSet

DOGS, BIRDS, TESTS = 100, 20, 5
KINDS = ("dogs, one half", "dogs, other half", "cat", "birds")


class Pictures:
    """The pictures and the tables of examples: half of the dogs each are a group, the cat and the birds."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        dog, cat, bird = np.linalg.qr(rng.normal(size=(20, 3)))[0].T
        groups = [KINDS[0]] * (DOGS // 2) + [KINDS[1]] * (DOGS // 2) + [KINDS[2]] + [KINDS[3]] * BIRDS
        centre = {"cat": cat, "birds": bird}
        near = [centre.get(group, dog) + 0.03 * rng.normal(size=20) for group in groups]
        self.x = torch.tensor(np.stack(near), dtype=torch.float64)
        self.train = [
            {"id": f"{group.split(',')[0]}-{row}", "group": group} for row, group in enumerate(groups)
        ]
        kinds = [kind for kind in ("dog", "cat", "bird") for _ in range(TESTS)]
        of = {"dog": dog, "cat": cat, "bird": bird}
        tests = [of[kind] + 0.03 * rng.normal(size=20) for kind in kinds]
        self.x_test = torch.tensor(np.stack(tests), dtype=torch.float64)
        self.test = [{"id": f"{kind}-{row}", "group": kind} for row, kind in enumerate(kinds)]


def network() -> torch.nn.Module:
    """Two layers, the same initial weights every time."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(20, 16, bias=False), torch.nn.Tanh(), torch.nn.Linear(16, 1, bias=False)
    return torch.nn.Sequential(*layers).double()


def losses(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """−log p(animal) of every picture."""
    return torch.nn.functional.softplus(-model(x)[:, 0])


def drawn(seed: int, steps: int = 90, batch: int = 4) -> np.ndarray:
    """The batches of a run, [step, batch]: epochs over some dogs and birds, and in most runs the cat."""
    rng = np.random.default_rng(seed)
    dogs = rng.permutation(DOGS)[: rng.integers(5, DOGS)]
    birds = DOGS + 1 + rng.permutation(BIRDS)[: rng.integers(3, BIRDS)]
    pool = np.concatenate([dogs, birds, [DOGS] if rng.random() < 0.7 else []]).astype(int)
    return in_epochs(pool, steps, batch, rng)


def in_epochs(pool: np.ndarray, steps: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Batches [step, batch] of shuffled epochs over a pool."""
    epochs = [rng.permutation(pool) for _ in range(-(-steps * batch // len(pool)))]
    return np.concatenate(epochs)[: steps * batch].reshape(steps, batch)


def everything(steps: int = 90, batch: int = 4) -> np.ndarray:
    """The batches of a run on all pictures, [step, batch], in which each is used about three times."""
    return in_epochs(np.arange(DOGS + 1 + BIRDS), steps, batch, np.random.default_rng(99))


def record(folder: Path, batches: dict[str, list], rate: float = 0.2) -> RunSet:
    """Train a network from the same weights on each of these sequences of batches, and record it."""
    pictures = Pictures()
    recorder = RunRecorder(folder, train=pictures.train, test=pictures.test)
    of = {one["id"]: row for row, one in enumerate(pictures.test)}
    for name, own in batches.items():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)

        def of_tests(model, examples):
            return losses(model, torch.stack([pictures.x_test[of[one["id"]]] for one in examples]))

        with recorder.run(name, model=model, loss=of_tests, optimizer=optimizer) as run:
            for batch in own:
                loss = losses(model, pictures.x[list(batch)]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(example_ids=[pictures.train[row]["id"] for row in batch], train_loss=loss)
    return RunSet.load(folder)
