"""Simulators of shares on published runs of language-model pretraining under data mixtures.

    python analysis/mixtures.py FOLDER [--output analysis/results/mixtures.md]

FOLDER holds one .csv file a set of runs with the columns run, step, share_… and loss_… (Ye et al. 2024), and
regmix_{train,test}_{mixture,pile_loss}_1m.csv (Liu et al. 2024). Compared are, over steps with losses of at
least half of the runs,

- the mean trajectory, with skill 0;
- linear regression of losses on shares, as RegMix does;
- ridge regressions of log losses on shares, and on shares and their square roots, one a step and domain
  (λ = 1e-4 n, features not scaled);
- exponential mixing laws L = c + k exp(Σ_g t_g r_g) (Ye et al.), least squares, one a step and domain
  (λ = 1e-6 n on t, with which they do best);
- ``shares``, with what it chooses; "all steps" counts those too that fewer runs were evaluated at.

In the sets of Ye et al. each run is predicted from all others (leave one out), its recorded steps only.
Skill = 1 − squared error / that of the mean trajectory of the same training runs. In RegMix's set, 512 runs
predict 256 others: Spearman correlation over runs, mean over domains and on Pile-CC.

Coverage: the part of the losses of runs that were held out within the 90 % bands of ``auto``, fitted to 20
runs (at most all but five), mean of six random splits, over all steps with losses and at the end of runs.

At the end stand runs of known laws whose shares change once or twice, at random steps; 24 to fit and 40 to
predict. The regressions are given the shares of what was consumed up to each step. "diminishing": a group's
share grows from .05 to .75 in eight steps, at the cost of all others alike; the part of the second
differences of the loss that ``shares`` predicts at the end that are above 0, as all are in these laws: each
further part of a group helps less.
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

from simfluence import AutoSimulator, Curriculum, MeanTrajectory, PredictiveBands, RunSet, ShareSimulator
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
    "linear regression": linear,
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


def coverage(name: str, runs: RunSet, draws: int = 6) -> dict[str, Any]:
    """Of the bands of ``auto`` on runs that were held out."""
    found = []
    for seed in range(draws):
        order, count = np.random.default_rng(seed).permutation(len(runs)), min(20, len(runs) - 5)
        held_out = runs[order[count:]]
        bands = PredictiveBands(AutoSimulator()).fit(runs[order[:count]])
        true = held_out.loss[:, 1:]
        low, high = (edge[:, 1:] for edge in bands.predict(held_out.curricula, held_out.initial_loss))
        last = np.arange(len(held_out)), np.array([len(run) for run in held_out]) - 1
        for at in (np.isfinite(true), last):
            known = np.isfinite(true[at])
            found.append(((low[at] <= true[at]) & (true[at] <= high[at]))[known].mean())
    means = np.reshape(found, (draws, 2)).mean(0)
    return {"set": name, "fitted": count, "all steps": means[0], "at the end": means[1]}


def regmix(folder: Path) -> pd.DataFrame:
    train, test = (load_regmix(folder, part) for part in ("train", "test"))
    pile_cc = next(z for z, name in enumerate(train.test.ids) if "pile_cc" in name)
    true, shares = test.loss[:, 1], final_shares(train)
    simulator = ShareSimulator().fit(train)
    print(f"RegMix: λ {simulator.penalty_:.2g}, floor {simulator.floor_}, error {simulator.error_:.3f}")
    predictions = {
        name: predict(shares, train.loss[:, 1], final_shares(test)) for name, predict in REGRESSIONS.items()
    }
    predictions["shares"] = simulator.simulate(test.curricula, test.initial_loss)[:, 1]
    mean_error = np.square(train.loss[:, 1].mean(0) - true).sum()
    rows = []
    for name, predicted in predictions.items():
        ranks = [spearmanr(predicted[:, z], true[:, z]).statistic for z in range(true.shape[1])]
        skill = 1 - np.square(predicted - true).sum() / mean_error
        rows.append((name, float(np.mean(ranks)), float(ranks[pile_cc]), float(skill)))
    return pd.DataFrame(rows, columns=["", "Spearman, mean", "Spearman, Pile-CC", "skill"])


# ------------------------------------------------------------------------------------- known laws


def schedules(count: int, rng: np.random.Generator) -> list[Array]:
    """Shares [step, group] of four groups over 20 steps, that change once or twice."""
    found = []
    for _ in range(count):
        changes = np.sort(rng.choice(np.arange(3, 18), rng.integers(1, 3), replace=False))
        phase = np.searchsorted(changes, np.arange(20), side="right")
        found.append(rng.dirichlet(np.ones(4), 3)[phase])
    return found


def known_laws(seed: int = 0) -> dict[str, Callable[[Array], Array]]:
    """Shares [step, group] → losses [step, domain] after each step."""
    rng = np.random.default_rng(seed)
    mixing, powers = rng.normal(0, 1, (4, 6)), rng.uniform(0.1, 0.6, (4, 6))
    gains, scales = rng.uniform(0.1, 1, (4, 6)), rng.uniform(1, 8, (4, 6))
    t = np.arange(1, 21)[:, None]
    kept = 0.8 ** (t - t.T) * (t >= t.T)

    def given(shares: Array) -> Array:
        return np.cumsum(shares, axis=0)[:, :, None]

    return {
        "mixing law": lambda shares: 1.5 + 2 * t**-0.3 * np.exp(given(shares)[..., 0] / t @ mixing * 0.5),
        "power laws": lambda shares: 1.5 + ((1 + given(shares)) ** -powers).sum(1) / 2,
        "saturating": lambda shares: 1.5 + (gains * np.exp(-given(shares) / scales)).sum(1),
        "logarithmic": lambda shares: 4 - (gains * np.log1p(given(shares) / scales)).sum(1) / 2,
        "forgetting": lambda shares: 1.5 + 2 * np.exp(-(kept @ shares) @ np.abs(mixing) * 0.5),
    }


def runs_of(law: Callable[[Array], Array], noise: float = 0.003) -> RunSet:
    """64 runs."""
    rng = np.random.default_rng(1)
    runs = []
    for number, shares in enumerate(schedules(64, rng)):
        losses = law(shares) + rng.normal(0, noise, (20, 6))
        runs.append(_run(number, Curriculum.from_shares(shares), np.vstack([np.full(6, 4.0), losses])))
    return RunSet(runs, ExampleTable.numbered(4), ExampleTable.numbered(6))


def _run(number: int, curriculum: Curriculum, losses: Array) -> Run:
    steps = len(curriculum)
    unknown = np.full(steps, np.nan)
    return Run(f"run-{number}", curriculum, {"loss": losses}, np.arange(steps + 1), unknown, unknown)


def changing_shares() -> pd.DataFrame:
    """Skill of regressions and of ``shares`` on each law."""
    rows = []
    for name, law in known_laws().items():
        train, test = (part for part in runs_of(law).split(24)[::2])
        mean = MeanTrajectory().fit(train).simulate(test.curricula, test.initial_loss)
        simulators = {f"shares, κ = {kappa:g}": ShareSimulator(recency=kappa) for kappa in (0, 1, 3)}
        simulators["shares"] = ShareSimulator()
        predicted = {key: predict_steps(predict, train, test) for key, predict in REGRESSIONS.items()}
        for key, one in simulators.items():
            predicted[key] = one.fit(train).simulate(test.curricula, test.initial_loss)[:, 1:]
        true, squares = test.loss[:, 1:], np.square(mean - test.loss).sum()
        skills = {key: 1 - np.square(losses - true).sum() / squares for key, losses in predicted.items()}
        rows.append({"law": name} | skills | {"diminishing": diminishing(simulators["shares"])})
    return pd.DataFrame(rows)


def predict_steps(predict: Predict, train: RunSet, test: RunSet) -> Array:
    """[run, step, domain], by the shares of what was consumed so far."""
    t = np.arange(1, 21)[:, None]
    so_far, new = (
        np.stack([np.cumsum(one.counts().toarray(), axis=0) / t for one in runs.curricula])
        for runs in (train, test)
    )
    each = [predict(so_far[:, step], train.loss[:, step + 1], new[:, step]) for step in range(20)]
    return np.stack(each, axis=1)


def diminishing(simulator: ShareSimulator) -> float:
    """The part of second differences of the predicted losses along a group's share that are above 0."""
    above = []
    for group in np.eye(4):
        shares = [part * group + (1 - part) * (1 - group) / 3 for part in np.linspace(0.05, 0.75, 8)]
        curricula = [Curriculum.from_shares(np.tile(one, (20, 1))) for one in shares]
        losses = simulator.simulate(curricula, np.full(6, 4.0))[:, -1]
        above.append((np.diff(losses, 2, axis=0) > 0).mean())
    return float(np.mean(above))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mixtures.md")
    options = parser.parse_args()
    warnings.simplefilter("error")
    rows: list[dict[str, Any]] = []
    covered: list[dict[str, Any]] = []
    for name in SETS:
        runs = load(options.folder / f"{name}.csv")
        rows.append({"set": name, "runs": len(runs)} | leave_one_out(runs))
        covered.append(coverage(name, runs))
        print(rows[-1], covered[-1], flush=True)
    covered.append(coverage("RegMix, 60 runs", load_regmix(options.folder, "train")[:60]))
    tables = [pd.DataFrame(rows), regmix(options.folder), pd.DataFrame(covered), changing_shares()]
    options.output.write_text(
        "\n\n".join(
            [
                "`python analysis/mixtures.py FOLDER`: what the rows are is said in the script.",
                "Skill, each run predicted from the others:",
                tables[0].to_markdown(index=False, floatfmt=".3f"),
                "RegMix, 512 runs of one million parameters predict 256 others:",
                tables[1].to_markdown(index=False, floatfmt=".3f"),
                "Coverage of the 90 % bands of `auto` on runs that were held out:",
                tables[2].to_markdown(index=False, floatfmt=".3f"),
                "Skill on runs of known laws whose shares change once or twice:",
                tables[3].to_markdown(index=False, floatfmt=".3f"),
            ]
        )
        + "\n"
    )
    print(options.output.read_text())


if __name__ == "__main__":
    main()
