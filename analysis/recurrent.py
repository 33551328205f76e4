"""A gated recurrence over curricula, honestly tuned: is there more to be had than the simulators have?

    python analysis/recurrent.py [set ...] [--size 20]

At every step a GRU reads the mean embedding of the batch, the same as the optimizer remembers it, and the
time; a linear map of its state is what the step changes about log(eᴸ − 1) of every test example. It starts
from the mean trajectory ("alone"), or from ``AutoSimulator`` ("beside auto": its leave-one-run-out rollouts,
while training). Losses after the first are never read.

Embeddings are learnt, or fixed: singular vectors of the effects that a deviation regression finds in the same
training runs, or of the gradient scores beside the set. Embedding, hidden size, weight decay and the number
of epochs (0 among them) are chosen one after the other by four-fold cross-validation over the training runs;
networks of several seeds are then trained on all of them and averaged. The last ten runs are scored once.
Writes analysis/results/recurrent.csv; what is in it is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.numpy import load_file
from torch import nn

from simfluence.evaluation import metrics
from simfluence.runs import RunSet
from simfluence.simulators import AutoSimulator, MeanTrajectory
from simfluence.simulators.effects import average_effects, link
from simfluence.simulators.fitting import Fitting, Settings
from simfluence.simulators.memory import remembered_counts

FILE = Path(__file__).parent / "results" / "recurrent.csv"
SETS = ("copa-minilm-high-rate", "rte-minilm", "facts-minilm")
CHOICES = {"embedding": ("effects", "scores", "learnt"), "hidden": (16, 64), "decay": (0.1, 1.0)}
EPOCHS, EVERY, SEEDS, FOLDS, RANK, RATE = 240, 20, 3, 4, 16, 3e-3

Array = npt.NDArray[np.float64]
Vectors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    embedding: str = "effects"
    hidden: int = 16
    decay: float = 1.0


@dataclass(frozen=True)
class Data:
    """Runs as the network takes them.

    counts : [2, run, step, train], shares of the batch, as it is and as the optimizer remembers it.
    true : losses, before : log-odds as said without the network, both [run, step, test].
    """

    counts: torch.Tensor
    true: torch.Tensor
    before: torch.Tensor

    @classmethod
    def of(cls, runs: RunSet, before: Array) -> Data:
        remembered = [
            [remembered_counts(run.curriculum, beta, beta > 0, 1.0) for run in runs] for beta in (0.0, 0.9)
        ]
        arrays = (np.array(remembered), runs.loss[:, 1:], link(before[:, 1:], "log_odds"))
        return cls(*(torch.from_numpy(np.asarray(values, np.float32)) for values in arrays))

    def part(self, runs: npt.NDArray[np.int64]) -> Data:
        return Data(self.counts[:, runs], self.true[runs], self.before[runs])


class Recurrence(nn.Module):
    """What was changed about the log-odds of every test example, [run, step, test]."""

    def __init__(self, setting: Setting, vectors: Vectors) -> None:
        super().__init__()
        learnt = setting.embedding == "learnt"
        self.train_vectors, self.test_vectors = (
            nn.Parameter(v.clone(), requires_grad=learnt) for v in vectors
        )
        self.cell = nn.GRU(2 * RANK + 1, setting.hidden, batch_first=True)
        self.out = nn.Linear(setting.hidden + RANK, RANK)
        for values in self.out.parameters():
            nn.init.zeros_(values)  # nothing is known at first

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        now, remembered = counts @ self.train_vectors
        time = torch.linspace(0, 1, now.shape[1]).expand(len(now), -1)[..., None]
        state, _ = self.cell(torch.cat([now, remembered, time], -1))
        return self.out(torch.cat([state, remembered], -1)).cumsum(1) @ self.test_vectors.T


def fit(
    setting: Setting, vectors: Vectors, fitted: Data, epochs: int, seed: int, held_out: Data | None = None
) -> tuple[Recurrence, list[float]]:
    """The network, and its errors on held-out runs at first and every ``EVERY`` epochs."""
    torch.manual_seed(seed)
    network = Recurrence(setting, vectors)
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=setting.decay)
    spread = (fitted.true - fitted.true.mean(0)).square().mean()
    errors: list[float] = []
    for epoch in range(epochs + 1):
        if held_out is not None and epoch % EVERY == 0:
            errors.append(float((simulate(network, fitted, held_out) - held_out.true).square().mean()))
        if epoch == epochs:
            break
        some = torch.randperm(len(fitted.true))[: 3 * len(fitted.true) // 4]
        optimizer.zero_grad()
        change = network(fitted.counts[:, some])
        told = nn.functional.softplus(fitted.before[some] + change - change.mean(0))
        ((told - fitted.true[some]).square().mean() / spread).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return network, errors


@torch.no_grad()
def simulate(network: Recurrence, fitted: Data, asked: Data) -> torch.Tensor:
    """Losses [run, step, test]; changes are relative to their mean over the training runs."""
    change = network(asked.counts) - network(fitted.counts).mean(0)
    return nn.functional.softplus(asked.before + change)


def vectors_of(embedding: str, runs: RunSet, scores: Array) -> Vectors:
    """Of training [train, RANK] and test examples [test, RANK]."""
    if embedding == "learnt":
        torch.manual_seed(0)
        return torch.randn(len(runs.train), RANK), torch.randn(len(runs.test), RANK)
    effects = -scores
    if embedding == "effects":
        fitting = Fitting(runs, None, np.empty((0, *scores.shape)), np.empty((0, 0)), 4000)
        settings = Settings(link="log_odds", decay=0.1)
        found, features = fitting.choose_penalty(settings), fitting.features(settings)
        total = int(fitting.recorded.grid[-1])
        effects = average_effects(found.model, features, fitting.scores[:0], 0.1, "log_odds", total)
    left, values, right = np.linalg.svd(effects, full_matrices=False)
    parts = (left[:, :RANK] * np.sqrt(values[:RANK]), right[:RANK].T * np.sqrt(values[:RANK]))
    train, test = (torch.from_numpy(p / (np.sqrt(np.square(p).mean()) or 1.0)).float() for p in parts)
    return train, test


def tune(train: RunSet, data: Data, scores: Array) -> tuple[Setting, int, float]:
    """(setting, epochs, mean squared error) of least error on runs left out."""
    number = np.arange(len(train)) % FOLDS
    folds = [(np.flatnonzero(number != k), np.flatnonzero(number == k)) for k in range(FOLDS)]
    known: dict[str, list[Vectors]] = {}

    def error(setting: Setting) -> tuple[float, int]:
        if setting.embedding not in known:
            known[setting.embedding] = [
                vectors_of(setting.embedding, train[some], scores) for some, _ in folds
            ]
        curves = [
            fit(setting, vectors, data.part(some), EPOCHS, 0, data.part(others))[1]
            for vectors, (some, others) in zip(known[setting.embedding], folds, strict=True)
        ]
        curve = np.mean(curves, axis=0)
        return float(curve.min()), EVERY * int(curve.argmin())

    best = Setting()
    errors = {best: error(best)}
    for name, values in CHOICES.items():
        for value in values:
            tried = dataclasses.replace(best, **{name: value})
            errors.setdefault(tried, (np.inf, 0))
            if not np.isfinite(errors[tried][0]):
                errors[tried] = error(tried)
        best = min(errors, key=lambda setting: errors[setting][0])
    return best, errors[best][1], errors[best][0]


def measure(folder: Path, size: int) -> list[dict[str, object]]:
    """Both variants on one set."""
    runs = RunSet.load(folder)
    train, test = runs[:size], runs[-10:]
    scores = load_file(folder / "scores.safetensors")["scores"].astype(np.float64)
    mean = MeanTrajectory().fit(train)
    auto = AutoSimulator().fit(train)
    others = (size * train.loss.mean(0, np.float64) - train.loss) / (size - 1)
    asked = (test.curricula, test.initial_loss)
    before = {
        "alone": (np.repeat(train.loss.mean(0, np.float64)[None], size, 0), mean.simulate(*asked)),
        "beside auto": (auto.left_out_losses(train), auto.simulate(*asked)),
    }
    rows = []
    for variant, (of_train, of_test) in before.items():
        began = time.perf_counter()
        data = Data.of(train, of_train)
        setting, epochs, error = tune(train, data, scores)
        vectors = vectors_of(setting.embedding, train, scores)
        networks = [fit(setting, vectors, data, epochs, seed)[0] for seed in range(SEEDS)]
        later = torch.stack([simulate(network, data, Data.of(test, of_test)) for network in networks]).mean(0)
        losses = np.concatenate([test.loss[:, :1], later.numpy()], axis=1)
        seconds = time.perf_counter() - began
        base = metrics.all_steps_mse(test.loss, mean.simulate(*asked)).mean()
        final = metrics.final_loss(test.loss)
        for name, simulated in (("auto", auto.simulate(*asked)), (f"recurrence, {variant}", losses)):
            skill = 1 - metrics.all_steps_mse(test.loss, simulated).mean(1) / base
            across = metrics.across_runs_spearman(final, metrics.final_loss(simulated))
            row = {"set": folder.name, "training runs": size, "simulator": name, "skill": skill.mean()}
            row |= {
                "standard error": skill.std(ddof=1) / np.sqrt(len(skill)),
                "across-runs ρ": np.nanmean(across),
            }
            if name != "auto":
                left_out = 1 - error / np.square(others - train.loss)[:, 1:].mean()
                row |= {"skill, cross-validated": left_out, **dataclasses.asdict(setting), "epochs": epochs}
                row |= {"seconds": seconds}
            if name != "auto" or variant == "alone":
                rows.append(row)
                print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--size", type=int, default=20)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    frame = pd.read_csv(FILE) if FILE.exists() else pd.DataFrame(columns=["set", "training runs"])
    for name in options.sets:
        if ((frame["set"] == name) & (frame["training runs"] == options.size)).any():
            continue
        rows = measure(Path("runs") / name, options.size)
        frame = pd.DataFrame([*frame.to_dict("records"), *rows])
        frame.to_csv(FILE, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
