"""Simulators of shares on published runs of language-model pretraining under data mixtures.

    python analysis/mixtures.py FOLDER [--output analysis/results/mixtures.md]

FOLDER holds one .csv file a set of runs with the columns run, step, share_… and loss_… (Ye et al. 2024), and
regmix_{train,test}_{mixture,pile_loss}_1m.csv (Liu et al. 2024). Compared are, over steps with losses of at
least half of the runs,

- the mean trajectory, with skill 0;
- ridge regressions of log losses on shares, and on shares and their square roots, one a step and domain
  (λ = 1e-4 n, features not scaled);
- exponential mixing laws L = c + k exp(Σ_g t_g r_g) (Ye et al.), least squares, one a step and domain
  (λ = 1e-6 n on t, with which they do best);
- ``shares``, with what it chooses; "all steps" counts those too that fewer runs were evaluated at.

In the sets of Ye et al. each run is predicted from all others (leave one out), its recorded steps only.
Skill = 1 − squared error / that of the mean trajectory of the same training runs. In RegMix's set, 512 runs
predict 256 others: Spearman correlation over runs, mean over domains and on Pile-CC.

At the end stand runs of known laws with shares that change at a random step, 24 to fit and 40 to predict.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression, Ridge

from simfluence import Curriculum, MeanTrajectory, RunSet, ShareSimulator
from simfluence.runs import ExampleTable, Run

INITIAL = 10.8
"""The logarithm of the size of the vocabulary."""
SETS = ["5mix-70m", "5mix-160m", "redpajama-70m", "redpajama-160m", "redpajama-305m"]
Array = np.ndarray
Predict = Callable[[Array, Array, Array], Array]
"""Shares [run, group] and losses [run, domain] of some runs, shares [new, group] → losses [new, domain]."""


def load(file: Path) -> RunSet:
    return RunSet.from_mixtures(
        file, file, share_prefix="share_", loss_prefix="loss_", normalize=True, initial_loss=INITIAL
    )


def load_regmix(folder: Path, part: str) -> RunSet:
    files = (folder / f"regmix_{part}_{what}_1m.csv" for what in ("mixture", "pile_loss"))
    return RunSet.from_mixtures(*files, run="index", normalize=True, initial_loss=INITIAL)


def final_shares(runs: RunSet) -> Array:
    """[run, group]: of what a run consumed in all."""
    consumed = np.stack([curriculum.counts().sum(axis=0) for curriculum in runs.curricula])
    return consumed / consumed.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------- regressions


def ridge(features: Callable[[Array], Array]) -> Predict:
    def predict(shares: Array, losses: Array, new: Array) -> Array:
        model = Ridge(1e-4 * len(shares)).fit(features(shares), np.log(losses))
        return np.exp(model.predict(features(new)))

    return predict


def linear(shares: Array, losses: Array, new: Array) -> Array:
    return LinearRegression().fit(shares, losses).predict(new)


def mixing_law(shares: Array, losses: Array, new: Array) -> Array:
    """Least squares with a penalty on t, from the best start on a grid of c, where the law is linear
    in log(L − c); which stays where least squares do not converge. Predictions are held between half the
    least and twice the largest loss.
    """
    predicted = np.full((len(new), losses.shape[1]), np.nan)
    penalty = np.sqrt(1e-6 * len(shares)) * np.eye(shares.shape[1] + 2)[2:]
    design = np.hstack([np.ones((len(shares), 1)), shares])
    for z, y in enumerate(losses.T):

        def residuals(p: Array, y: Array = y) -> Array:
            fitted = p[0] + np.exp(np.minimum(design @ p[1:], 50))
            return np.concatenate([fitted - y, penalty @ p])

        def jacobian(p: Array) -> Array:
            growth = np.exp(np.minimum(design @ p[1:], 50))[:, None]
            return np.vstack([np.hstack([np.ones_like(growth), growth * design]), penalty])

        starts = []
        for part in np.linspace(0, 0.98, 15):
            c = part * y.min()
            weighted = np.vstack([design * (y - c)[:, None], penalty[:, 1:]])
            targets = np.append(np.log(y - c) * (y - c), np.zeros(len(penalty)))
            starts.append(np.append(c, np.linalg.lstsq(weighted, targets, rcond=None)[0]))
        start = min(starts, key=lambda one: np.square(residuals(one)).sum())
        fit = least_squares(residuals, start, jacobian, method="lm", max_nfev=100)
        c, *law = fit.x if fit.success else start
        exponent = np.hstack([np.ones((len(new), 1)), new]) @ law
        predicted[:, z] = np.clip(c + np.exp(np.minimum(exponent, 50)), 0.5 * y.min(), 2 * y.max())
    return predicted


REGRESSIONS: dict[str, Predict] = {
    "ridge, shares": ridge(lambda shares: shares),
    "ridge, shares and roots": ridge(lambda shares: np.hstack([shares, np.sqrt(shares)])),
    "mixing law": mixing_law,
}

# --------------------------------------------------------------------------------------- one file


def leave_one_out(runs: RunSet) -> dict[str, float]:
    """Skill of everything on one set."""
    true, shares = runs.loss, final_shares(runs)
    evaluated = np.isfinite(true).all(2)
    common = evaluated.sum(0) >= len(runs) / 2
    common[0] = False
    errors: dict[str, float] = {}

    def add(name: str, predicted: Array, run: int, steps: Array) -> None:
        difference = predicted[steps] - true[run, steps]
        errors[name] = errors.get(name, 0.0) + float(np.square(difference).sum())

    for run in range(len(runs)):
        others = np.delete(np.arange(len(runs)), run)
        steps = np.flatnonzero(evaluated[run] & common)
        later = np.flatnonzero(evaluated[run] & (evaluated[others].sum(0) > 0))[1:]
        curricula, initial = [runs[run].curriculum], runs[run].initial_loss
        for name, simulator in (("mean", MeanTrajectory()), ("shares", ShareSimulator())):
            predicted = simulator.fit(runs[others]).simulate(curricula, initial)[0]
            add(name, predicted, run, steps)
            add(f"{name}, all steps", predicted, run, later)
        for name, predict in REGRESSIONS.items():
            predicted = np.full(true.shape[1:], np.nan)
            for step in steps:
                known = others[evaluated[others, step]]
                predicted[step] = predict(shares[known], true[known, step], shares[[run]])[0]
            add(name, predicted, run, steps)
    skills = {name: 1 - errors[name] / errors["mean"] for name in (*REGRESSIONS, "shares")}
    return skills | {"shares, all steps": 1 - errors["shares, all steps"] / errors["mean, all steps"]}


def regmix(folder: Path) -> pd.DataFrame:
    train, test = (load_regmix(folder, part) for part in ("train", "test"))
    pile_cc = next(z for z, name in enumerate(train.test.ids) if "pile_cc" in name)
    true, shares = test.loss[:, 1], final_shares(train)
    simulator = ShareSimulator().fit(train)
    print(f"RegMix: λ {simulator.penalty_:.2g}, floor {simulator.floor_}, error {simulator.error_:.3f}")
    predictions = {"linear regression": linear(shares, train.loss[:, 1], final_shares(test))}
    for name in ("ridge, shares", "ridge, shares and roots", "mixing law"):
        predictions[name] = REGRESSIONS[name](shares, train.loss[:, 1], final_shares(test))
    predictions["shares"] = simulator.simulate(test.curricula, test.initial_loss)[:, 1]
    mean_error = np.square(train.loss[:, 1].mean(0) - true).sum()
    rows = []
    for name, predicted in predictions.items():
        ranks = [spearmanr(predicted[:, z], true[:, z]).statistic for z in range(true.shape[1])]
        skill = 1 - np.square(predicted - true).sum() / mean_error
        rows.append((name, float(np.mean(ranks)), float(ranks[pile_cc]), float(skill)))
    return pd.DataFrame(rows, columns=["", "Spearman, mean", "Spearman, Pile-CC", "skill"])


# ------------------------------------------------------------------------------------- known laws


def known_laws(seed: int = 0) -> dict[str, RunSet]:
    """64 runs of each law over four groups and six domains; shares change once, at a random step of 20."""
    rng = np.random.default_rng(seed)
    mixing, tokens = rng.normal(0, 1, (4, 6)), rng.uniform(0.1, 0.6, (4, 6))
    schedules = []
    for _ in range(64):
        first, second, change = *rng.dirichlet(np.ones(4), 2), rng.integers(4, 17)
        schedules.append(np.where(np.arange(20)[:, None] < change, first, second))
    found = {}
    for name in ("mixing law of what was consumed so far", "power laws of what groups gave", "forgetting"):
        runs = []
        for number, shares in enumerate(schedules):
            t = np.arange(1, 21)[:, None]
            so_far = np.cumsum(shares, axis=0)
            if name.startswith("mixing"):
                losses = 1.5 + 2 * t**-0.3 * np.exp(so_far / t @ mixing * 0.5)
            elif name.startswith("power"):
                losses = 1.5 + sum((1 + so_far[:, [g]]) ** -tokens[g] for g in range(4)) / 2
            else:
                kept = 0.8 ** (t - t.T) * (t >= t.T)
                losses = 1.5 + 2 * np.exp(-(kept @ shares) @ np.abs(mixing) * 0.5)
            losses = np.vstack([np.full(6, 4.0), losses]) + np.vstack(
                [np.zeros(6), rng.normal(0, 0.003, (20, 6))]
            )
            runs.append(_run(number, Curriculum.from_shares(shares), losses))
        found[name] = RunSet(runs, ExampleTable.numbered(4), ExampleTable.numbered(6))
    return found


def _run(number: int, curriculum: Curriculum, losses: Array) -> Run:
    steps = len(curriculum)
    unknown = np.full(steps, np.nan)
    return Run(f"run-{number}", curriculum, {"loss": losses}, np.arange(steps + 1), unknown, unknown)


def changing_shares() -> pd.DataFrame:
    rows = []
    for name, runs in known_laws().items():
        train, test = runs[:24], runs[24:]
        mean = MeanTrajectory().fit(train).simulate(test.curricula, test.initial_loss)
        fitted = {f"κ = {kappa:g}": ShareSimulator(recency=kappa) for kappa in (0, 1, 3)}
        skills = {
            key: 1
            - np.square(one.fit(train).simulate(test.curricula, test.initial_loss) - test.loss).sum()
            / np.square(mean - test.loss).sum()
            for key, one in (fitted | {"chosen": ShareSimulator()}).items()
        }
        rows.append({"law": name} | skills)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mixtures.md")
    options = parser.parse_args()
    warnings.simplefilter("error")
    rows: list[dict[str, Any]] = []
    for name in SETS:
        runs = load(options.folder / f"{name}.csv")
        rows.append({"set": name, "runs": len(runs)} | leave_one_out(runs))
        print(rows[-1], flush=True)
    tables = [pd.DataFrame(rows), regmix(options.folder), changing_shares()]
    options.output.write_text(
        "\n\n".join(
            [
                "`python analysis/mixtures.py FOLDER`: what the rows are is said in the script.",
                "Skill, each run predicted from the others:",
                tables[0].to_markdown(index=False, floatfmt=".3f"),
                "RegMix, 512 runs of one million parameters predict 256 others:",
                tables[1].to_markdown(index=False, floatfmt=".3f"),
                "Skill on runs of known laws whose shares change at a random step:",
                tables[2].to_markdown(index=False, floatfmt=".3f"),
            ]
        )
        + "\n"
    )
    print(options.output.read_text())


if __name__ == "__main__":
    main()
