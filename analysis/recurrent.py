"""Nonlinear recurrences over curricula, honestly tuned: is there more to be had than the simulators have?

    python analysis/recurrent.py [set ...] [--size 20] [--alone] [--cache folder]

"two layers" is a dynamics (simulators/dynamics.py) whose kernel changes: a network of two linear layers
over fixed vectors, φ of training and ψ of test examples, trained along each curriculum:

    ρ_i = 2 σ(−f_0 − κ ⟨φ_i, Aᵀw⟩)                  what i still teaches
    m   = remembered by the optimizer of G = Σ_{i ∈ c_t} ρ_i φ_i / |c_t|
    w   ← α_t w + γ_t A m                            one curve γ for each kind of φ
    A   ← 1 + λ (A − 1) + η_t · remembered w Gᵀ      kernel "matrix"; ⟨w, G⟩: "gain"; 0: "fixed"

log(eᴸ − 1) of test example z is −⟨ψ_z, Aᵀw⟩, shifted so that the training runs have their mean. α, γ and η
are curves of time. "gru" reads the batch's mean φ, as it is and as remembered, and the time; a linear map of
its state is what a step changes. Both stand alone, or beside a deviation simulator with scores and a
dynamics, which tells training runs without having seen them; "mean" is half of that and half of "two
layers, alone". Losses after the first are never read.

φ and ψ are singular vectors of gradient scores ("scores"), of effects that a regression finds in the same
runs ("effects"), "both", or learnt. All choices, the number of epochs too, are those of least error in
four-fold cross-validation over the training runs; effects are found anew for every fold, the simulator is
fitted once. Learning rates and penalties of curves are set, not tuned. The last ten runs are scored once.
With --alone there are scores and learnt vectors only, and gains are over the mean trajectory. Writes
analysis/results/recurrent.csv; a set that is in it is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.numpy import load_file
from torch import nn

from simfluence.curriculum import count_matrix
from simfluence.evaluation import metrics
from simfluence.runs import RunSet
from simfluence.simulators import EffectsSimulator
from simfluence.simulators.effects.fitting import Fitting, Settings
from simfluence.simulators.effects.model import average_effects, link

RESULTS = Path(__file__).parent / "results"
SETS = ("copa-minilm-high-rate", "facts-minilm", "rte-minilm", "copa-minilm", "openbookqa-minilm")
FOLDS, HELD_OUT, KNOTS, SEEDS, EVERY = 4, 10, 16, 3, 20
CHOICES: dict[str, dict[str, tuple[object, ...]]] = {  # one after the other, from Setting's own
    "two layers": {"vectors": ("effects", "both"), "kernel": ("fixed", "matrix")},
    "gru": {"vectors": ("effects", "learnt"), "hidden": (48,), "decay": (1.0,), "dropout": (0.3,)},
}
EPOCHS = {"two layers": 60, "gru": 100}

Array = npt.NDArray[np.float64]
Vectors = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Setting:
    network: str
    beside: bool = False
    vectors: str = "scores"
    kernel: str = "gain"
    hidden: int = 16
    decay: float = 0.1
    dropout: float = 0.0


@dataclass(frozen=True)
class Data:
    """Some runs [run, step, …]: shares of batches, losses, and the log-odds that the simulator says."""

    counts: torch.Tensor
    true: torch.Tensor
    said: torch.Tensor

    @classmethod
    def of(cls, runs: RunSet, said: Array) -> Data:
        counts = [count_matrix([run.curriculum], 1.0).toarray() for run in runs]
        arrays = (np.array(counts), runs.loss[:, 1:], link(said[:, 1:], "log_odds"))
        return cls(*(torch.from_numpy(np.asarray(values, np.float32)) for values in arrays))


@dataclass(frozen=True)
class Part:
    """Runs to fit and runs to tell, and vectors of examples as the former know them."""

    fitted: Data
    asked: Data
    vectors: dict[str, Vectors]


def curve(knots: torch.Tensor, steps: int) -> torch.Tensor:
    """Linear between knots [..., knot], [step, ...]."""
    at = np.linspace(0, KNOTS - 1, steps)
    hats = np.stack([np.interp(at, np.arange(KNOTS), hat) for hat in np.eye(KNOTS)])
    return (knots @ torch.from_numpy(hats).float()).movedim(-1, 0)


def log_odds(losses: torch.Tensor) -> torch.Tensor:
    floored = losses.clamp(min=1e-2)
    return floored + torch.log(-torch.expm1(-floored))


class TwoLayers(nn.Module):
    """Changes of log-odds [run, step, test]; those of the training runs have to be centred."""

    rate = 0.05

    def __init__(self, setting: Setting, vectors: Vectors) -> None:
        super().__init__()
        self.kernel = setting.kernel
        self.phi, self.psi = (torch.cat(kinds, 1) for kinds in zip(*vectors, strict=True))
        self.kind = torch.cat([torch.full((len(u[0]),), k) for k, (u, _) in enumerate(vectors)])
        self.hold = nn.Parameter(torch.zeros(KNOTS))  # log α
        self.move = nn.Parameter(torch.full((len(vectors), KNOTS), -3.0))  # log γ
        self.round_ = nn.Parameter(torch.full((KNOTS,), -1.0))  # log η
        self.momentum, self.feedback, self.start, self.keep = (
            nn.Parameter(torch.tensor(value)) for value in (2.2, 0.8, 0.0, 4.0)
        )

    def penalty(self) -> torch.Tensor:
        rough = self.move.diff().square().sum() + self.round_.diff().square().sum()
        near = (
            (self.momentum - 2.2).square() + (self.feedback - 0.8).square() + (self.keep - 4.0).square() / 2
        )
        near = near + (self.round_ + 1.0).square().mean() / 2
        return 0.02 * rough + 4.0 * self.hold.diff().square().sum() + 0.01 * near

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        runs, steps, size = len(counts), counts.shape[1], self.phi.shape[1]
        hold, round_ = curve(self.hold, steps).exp(), curve(self.round_, steps).exp()
        move = curve(self.move, steps).exp()[:, self.kind]
        momentum, keep = torch.sigmoid(self.momentum), torch.sigmoid(self.keep)
        w = m = torch.zeros(runs, size)
        matrix = self.kernel == "matrix"
        one = torch.eye(size).expand(runs, size, size) if matrix else torch.ones(runs, 1)
        a, remembered, predicted_now = one, torch.zeros_like(one), []
        seen = w
        for t in range(steps):
            known = self.feedback.exp() * seen @ self.phi.T
            gradient = (counts[:, t] * 2 * torch.sigmoid(-self.start - known)) @ self.phi
            m = momentum * m + (1 - momentum) * gradient
            corrected = 1 - momentum ** (t + 1)
            step = move[t] * ((a @ m[..., None])[..., 0] if matrix else a * m) / corrected
            if self.kernel != "fixed":
                grown = (
                    w[:, :, None] * gradient[:, None] * size**0.5 if matrix else (w * gradient).sum(1, True)
                )
                remembered = momentum * remembered + (1 - momentum) * grown
                a = one + keep * (a - one) + round_[t] * remembered / corrected
            w = hold[t] * w + step
            seen = (w[:, None] @ a)[:, 0] if matrix else a * w
            predicted_now.append(-seen @ self.psi.T)
        return torch.stack(predicted_now, 1)


class Gated(nn.Module):
    """The same by a GRU, that knows nothing at first."""

    rate = 5e-3

    def __init__(self, setting: Setting, vectors: Vectors) -> None:
        super().__init__()
        learnt = setting.vectors == "learnt"
        (u, v), rank = vectors[0], 16
        self.phi, self.psi = (nn.Parameter(x[:, :rank].clone(), learnt) for x in (u, v))
        self.cell = nn.GRU(2 * rank + 1, setting.hidden, batch_first=True)
        self.drop = nn.Dropout(setting.dropout)
        self.out = nn.Linear(setting.hidden + rank, rank)
        for values in self.out.parameters():
            nn.init.zeros_(values)

    def penalty(self) -> torch.Tensor:
        return torch.zeros(())

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        now = counts @ self.phi
        m, all_m = torch.zeros_like(now[:, 0]), []
        for t in range(now.shape[1]):
            m = 0.9 * m + 0.1 * now[:, t]
            all_m.append(m / (1 - 0.9 ** (t + 1)))
        remembered = torch.stack(all_m, 1)
        progress = torch.linspace(0, 1, now.shape[1]).expand(len(now), -1)[..., None]
        state, _ = self.cell(torch.cat([self.drop(torch.cat([now, remembered], -1)), progress], -1))
        return self.out(torch.cat([self.drop(state), remembered], -1)).cumsum(1) @ self.psi.T / 10


class Simulated(nn.Module):
    """Log-odds, from a network's changes and, beside a simulator, a share of its deviations (a curve)."""

    def __init__(self, setting: Setting, vectors: Vectors, fitted: Data) -> None:
        super().__init__()
        self.network = (TwoLayers if setting.network == "two layers" else Gated)(setting, vectors)
        self.share = nn.Parameter(torch.zeros(KNOTS))  # less one
        self.center, self.fitted, self.beside = log_odds(fitted.true.mean(0)), fitted, setting.beside

    def moved(self, data: Data) -> torch.Tensor:
        moved = self.network(data.counts)
        if not self.beside:
            return moved
        share = 1 + curve(self.share, moved.shape[1])[:, None]
        return moved + share * (data.said - self.fitted.said.mean(0))

    @torch.no_grad()
    def losses(self, asked: Data) -> torch.Tensor:
        self.eval()
        return nn.functional.softplus(self.center + self.moved(asked) - self.moved(self.fitted).mean(0))


def fit(
    setting: Setting, vectors: Vectors, fitted: Data, epochs: int, seed: int = 0, asked: Data | None = None
) -> tuple[Simulated, list[torch.Tensor]]:
    """The network, and what it says of the runs asked for at first and every ``EVERY`` epochs."""
    torch.manual_seed(seed)
    model = Simulated(setting, vectors, fitted)
    decay = setting.decay if setting.network == "gru" else 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=model.network.rate, weight_decay=decay)
    true = fitted.true
    deviation = log_odds(true) - log_odds(true).mean(0)
    spread, by_step = (true - true.mean(0)).square().mean(), deviation.square().mean((0, 2))
    said = [model.losses(asked)] if asked is not None else []
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        moved = model.moved(fitted)
        moved = moved - moved.mean(0)
        of_losses = (nn.functional.softplus(model.center + moved) - true).square().mean() / spread
        even = ((moved - deviation).square().mean((0, 2)) / (by_step + 0.05 * by_step.mean())).mean()
        penalty = model.network.penalty() + 0.2 * model.share.diff().square().sum()
        (of_losses / 2 + even / 2 + penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if asked is not None and epoch % EVERY == 0:
            said.append(model.losses(asked))
    return model, said


def kept(file: Path, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """What takes minutes is made once."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **make())
    return dict(np.load(file))


def said_of(train: RunSet, test: RunSet, scores: Array) -> dict[str, Array]:
    """What a deviation simulator says of runs left out of its fit, and of those asked for."""
    simulator = EffectsSimulator(scores=scores, link="log_odds", dynamics=True).fit(train)
    asked = simulator.simulate(test.curricula, test.initial_loss)
    return {"out_of_fold": simulator.out_of_fold(train), "asked": asked}


def effects_of(runs: RunSet, scores: Array) -> dict[str, Array]:
    """Those that a regression on these runs finds, with scores as their mean."""
    fitting = Fitting(runs, None, scores[None], np.empty((0, 0)), 1000)
    settings = Settings(link="log_odds", decay=0.1, means=tuple(range(len(fitting.scores))))
    model, features = fitting.choose_penalty(settings).model, fitting.features(settings)
    total = int(fitting.recorded.grid[-1])
    return {"effects": average_effects(model, features, fitting.scores, 0.1, "log_odds", total)}


def vectors_of(runs: RunSet, scores: Array, file: Path | None) -> dict[str, Vectors]:
    """By name; without effects if there is no file to keep them in."""
    known = {"scores": scores}
    if file is not None:
        known["effects"] = -kept(file, lambda: effects_of(runs, scores))["effects"]
    vectors: dict[str, Vectors] = {}
    for name, values in known.items():
        left, sizes, right = np.linalg.svd(values, full_matrices=False)
        root = np.sqrt(sizes / np.sqrt(np.square(values).mean()))
        vectors[name] = [(torch.from_numpy(left * root).float(), torch.from_numpy(right.T * root).float())]
    if file is not None:
        vectors["both"] = vectors["scores"] + vectors["effects"]
    torch.manual_seed(0)
    vectors["learnt"] = [(torch.randn(len(runs.train), 16) / 2, torch.randn(len(runs.test), 16) / 2)]
    return vectors


def simulator_alone(part: Part) -> torch.Tensor:
    """Its deviations on the level of the fitted runs: what it says of left-out ones is on that of all."""
    mean = log_odds(part.fitted.true.mean(0))
    return nn.functional.softplus(mean + part.asked.said - part.fitted.said.mean(0))


def skill(predicted_now: torch.Tensor, parts: list[Part]) -> float:
    """Of what is predicted_now of the runs left out [run, step, test]."""
    true = torch.cat([part.asked.true for part in parts])
    mean = torch.cat([part.fitted.true.mean(0).expand_as(part.asked.true) for part in parts])
    return float(1 - (predicted_now - true).square().mean() / (mean - true).square().mean())


def cross_validated(setting: Setting, parts: list[Part]) -> tuple[float, int, torch.Tensor]:
    """(skill, epochs, losses predicted_now of the runs left out) at the best number of epochs."""
    predicted_now = []
    for part in parts:
        vectors, epochs = part.vectors[setting.vectors], EPOCHS[setting.network]
        predicted_now.append(torch.stack(fit(setting, vectors, part.fitted, epochs, 0, part.asked)[1]))
    each = torch.cat(predicted_now, 1)
    skills = [skill(losses, parts) for losses in each]
    best = int(np.argmax(skills))
    return skills[best], best * EVERY, each[best]


def tune(best: Setting, parts: list[Part]) -> tuple[Setting, int, float, torch.Tensor]:
    """(setting, epochs, cross-validated skill, losses predicted_now of the runs left out).

    Beside a simulator, with the setting that was chosen alone.
    """
    found = cross_validated(best, parts)
    print(f"    {found[0]:.3f} {best}, {found[1]} epochs", flush=True)
    for name, values in () if best.beside else CHOICES[best.network].items():
        for setting in [dataclasses.replace(best, **{name: value}) for value in values]:
            if setting.vectors not in parts[0].vectors:
                continue
            tried = cross_validated(setting, parts)
            print(f"    {tried[0]:.3f} {setting}, {tried[1]} epochs", flush=True)
            if tried[0] > found[0]:
                best, found = setting, tried
    return best, found[1], found[0], found[2]


def figures(name: str, losses: torch.Tensor, whole: Part) -> dict[str, object]:
    """On the held-out runs; the gain is over the simulator, run by run, in units of skill."""
    mean = whole.fitted.true.mean(0).expand_as(losses)
    usual = nn.functional.softplus(whole.asked.said)
    true, *predicted_now = (
        np.pad(values.double().numpy(), ((0, 0), (1, 0), (0, 0)))
        for values in (whole.asked.true, mean, usual, losses)
    )
    base, other, wrong = (metrics.all_steps_mse(true, values).mean(1) for values in predicted_now)
    skills, gains = 1 - wrong / base.mean(), (other - wrong) / base.mean()
    across = metrics.across_runs_spearman(true[:, -1], predicted_now[-1][:, -1])
    return {
        "simulator": name,
        "skill": skills.mean(),
        "standard error": skills.std(ddof=1) / np.sqrt(len(skills)),
        "across-runs ρ": np.nanmean(across) if np.isfinite(across).any() else np.nan,
        "gain": gains.mean(),
        "standard error of gain": gains.std(ddof=1) / np.sqrt(len(gains)),
    }


def measure(folder: Path, size: int, cache: Path, alone: bool) -> Iterator[dict[str, object]]:
    """One row a variant."""
    runs = RunSet.load(folder)
    train, test = runs[:size], runs[-HELD_OUT:]
    scores = load_file(folder / "scores.safetensors")["scores"].astype(np.float64)
    said = tuple(np.broadcast_to(train.loss.mean(0), some.loss.shape) for some in (train, test))
    if not alone:
        found = kept(cache / f"{folder.name}-{size}.npz", lambda: said_of(train, test, scores))
        said = found["out_of_fold"], found["asked"]
    effects = cache / f"{folder.name}-{size}-effects"
    whole = Part(
        Data.of(train, said[0]),
        Data.of(test, said[1]),
        vectors_of(train, scores, None if alone else effects.with_suffix(".npz")),
    )
    number, parts = np.arange(size) % FOLDS, []
    for fold in range(FOLDS):
        some, others = np.flatnonzero(number != fold), np.flatnonzero(number == fold)
        of_some, of_others = (Data.of(train[at], said[0][at]) for at in (some, others))
        parts.append(
            Part(
                of_some,
                of_others,
                vectors_of(train[some], scores, None if alone else Path(f"{effects}-{fold}.npz")),
            )
        )
    usual = torch.cat([simulator_alone(part) for part in parts]), nn.functional.softplus(whole.asked.said)
    if not alone:
        yield {**figures("deviation", usual[1], whole), "skill, cross-validated": skill(usual[0], parts)}
    for network in EPOCHS:
        setting = Setting(network)
        for beside in (False,) if alone else (False, True):
            began = time.perf_counter()
            setting, epochs, known, predicted_now = tune(dataclasses.replace(setting, beside=beside), parts)
            networks = [
                fit(setting, whole.vectors[setting.vectors], whole.fitted, epochs, seed)[0]
                for seed in range(SEEDS if network == "gru" else 1)
            ]
            losses = torch.stack([one.losses(whole.asked) for one in networks]).mean(0)
            chosen = {**dataclasses.asdict(setting), "epochs": epochs, "seconds": time.perf_counter() - began}
            found = figures(f"{network}, {'beside' if beside else 'alone'}", losses, whole)
            yield {**found, "skill, cross-validated": known, **chosen}
            if network == "two layers" and not (beside or alone):
                found = figures("mean", (losses + usual[1]) / 2, whole)
                yield {**found, "skill, cross-validated": skill((predicted_now + usual[0]) / 2, parts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--size", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "simfluence" / "recurrent")
    parser.add_argument(
        "--alone", action="store_true", help="without what takes minutes: simulator and effects"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table = RESULTS / "recurrent.csv"
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    done = {(row["set"], row["training runs"]) for row in rows}
    for name in [name for name in options.sets if (name, options.size) not in done]:
        for row in measure(Path("runs") / name, options.size, options.cache, options.alone):
            rows.append({"set": name, "training runs": options.size, **row})
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(table, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
