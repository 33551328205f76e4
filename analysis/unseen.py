"""Examples that the fit has never seen: a fifth of the training examples, of the test examples, of both.

    python analysis/unseen.py [set ...] [--data FOLDER] [--cache FOLDER]

For every run set X with a partner X-pool (recorded with run.design.pool=0.8: the same model and rates, but
its runs never draw a fifth of the training examples) simulators are fitted to the first 16 runs of X (all
training examples seen) or of X-pool (a fifth unseen), with the losses of four fifths of the test examples.
The last ten runs of X are simulated, which draw from all training examples. Each test example is unseen in
one of five folds. Penalties are chosen in the first fold and kept.

Features (``attribution/frozen_features.py``) are made once, from the weights before training, and kept under
--cache; tasks that are read from files are looked for in --data. Writes results/unseen.csv and unseen.md.
Skill is 1 − MSE / MSE of a baseline: the mean trajectory of the runs fitted to, which for an unseen test
example is that of all seen ones; "of its own" is against its own mean trajectory, which no fit has seen.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from simfluence.evaluation import metrics
from simfluence.finetuning.cache import cache_folder
from simfluence.finetuning.designs import pool_rows
from simfluence.finetuning.experiment import prepare
from simfluence.runs import ExampleTable, RunSet
from simfluence.simulators import (
    AutoSimulator,
    FeatureSimulator,
    MeanTrajectory,
    Persistence,
    Simulator,
)

RESULTS = Path(__file__).parent / "results"
TRAIN, HELD_OUT, FOLDS = 16, 10, 5
Array = np.ndarray


@dataclass(frozen=True)
class Model:
    """A FeatureSimulator. features, scores : names in the features' file; free : as there."""

    features: str | None
    scores: str | None = None
    free: float = 0.0


MODELS = {
    "bilinear, text": Model("text"),
    "bilinear, gradients": Model("gradients"),
    "bilinear, Adam-scaled gradients": Model("adam"),
    "the same, and free effects": Model("adam", free=0.1),
    "text, free effects, Adam-scaled scores": Model("text", "adam", 0.1),
    "Adam-scaled gradients, free effects, scores": Model("adam", "adam", 0.1),
}


def frozen(runs: RunSet, data: Path, cache: Path, name: str) -> dict[str, Array]:
    """Feature set → float [train + test, feature]."""
    file = cache / f"{name}.npz"
    if not file.exists():
        from simfluence.attribution.frozen_features import adam_scale, gradient_features, text_features

        with contextlib.chdir(data):
            prepared = prepare(runs[0].config)
        model, both = prepared.model, [*prepared.task.train, *prepared.task.test]
        model.load_state_dict(prepared.initial)
        scale = adam_scale(model, model.losses, prepared.task.train)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            text=text_features(model, both),
            gradients=gradient_features(model, model.losses, both),
            adam=gradient_features(model, model.losses, both, scale=scale),
        )
    with np.load(file) as arrays:
        return {key: arrays[key] for key in arrays}


def of_tests(runs: RunSet, tests: Array) -> RunSet:
    """The same runs with some of the test examples."""
    table = ExampleTable(runs.test.frame.iloc[tests].reset_index(drop=True))
    kept = [replace(run, metrics={k: v[:, tests] for k, v in run.metrics.items()}) for run in runs]
    return RunSet(kept, runs.train, table)


def by_features(model: Model, features: dict[str, Array], train: RunSet, test: RunSet) -> tuple[Array, Array]:
    """Losses of the held-out runs [run, step + 1, test], of every test example as seen and as unseen."""
    n = len(train.train)
    seen, unseen = np.zeros(test.loss.shape), np.zeros(test.loss.shape)
    order, penalty = np.random.default_rng(0).permutation(test.loss.shape[2]), None
    h = features[str(model.features)]
    scores = None if model.scores is None else features[model.scores][:n] @ features[model.scores][n:].T
    for fold in range(FOLDS):
        new = np.sort(order[fold::FOLDS])
        old = np.setdiff1d(order, new)
        fit = FeatureSimulator(
            h[:n],
            h[n:][old],
            scores=None if scores is None else scores[:, old],
            free=model.free,
            penalty=penalty,
        ).fit(of_tests(train, old))
        penalty = fit.penalty_
        start = test.initial_loss
        seen[:, :, old] += fit.simulate(test.curricula, start[:, old]) / (FOLDS - 1)
        moved = fit.transfer(
            None, h[n:][new], train.initial_loss[:, new], None if scores is None else scores[:, new]
        )
        unseen[:, :, new] = moved.simulate(test.curricula, start[:, new])
    return seen, unseen


def seen_only(simulator: Simulator, train: RunSet, test: RunSet) -> tuple[Array, Array | None]:
    """The same of a simulator that has no features, so cannot predict unseen test examples (None)."""
    return simulator.fit(train).simulate(test.curricula, test.initial_loss), None


def mean_of_others(train: RunSet, test: RunSet) -> Array:
    """The mean trajectory of the test examples of the other folds, for those of each."""
    order = np.random.default_rng(0).permutation(test.loss.shape[2])
    mean = np.zeros(test.loss.shape)
    for fold in range(FOLDS):
        new = np.sort(order[fold::FOLDS])
        old = np.setdiff1d(order, new)
        mean[:, :, new] = train.loss[:, :, old].mean((0, 2))[None, :, None]
    return mean


def measure(losses: Array, true: Array, baseline: Array, own: Array) -> dict[str, float]:
    """Means over held-out runs, and standard errors of the skill."""
    final, truth = metrics.final_loss(losses), metrics.final_loss(true)
    mse, base, by_own = (np.square(part - true)[:, 1:].mean((1, 2)) for part in (losses, baseline, own))
    shift, moved = losses - losses.mean(0), true - true.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # correlations of constants
        return {
            "all-steps MSE": mse.mean(),
            "skill": 1 - mse.mean() / base.mean(),
            "standard error": (mse / base.mean()).std(ddof=1) / np.sqrt(len(mse)),
            "skill, of its own": 1 - mse.mean() / by_own.mean(),
            "share of differences between runs": 1 - np.square(shift - moved).sum() / np.square(moved).sum(),
            "final-step Spearman": np.nanmean(metrics.final_step_spearman(truth, final)),
            "across-runs Spearman": np.nanmean(metrics.across_runs_spearman(truth, final)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help="all that have a partner, if none is named")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--cache", type=Path, default=cache_folder() / "features")
    options = parser.parse_args()
    names = options.sets or sorted(p.name.removesuffix("-pool") for p in Path("runs").glob("*-pool"))
    rows = []
    for name in names:
        full, pool = (RunSet.load(Path("runs") / folder) for folder in (name, f"{name}-pool"))
        features = frozen(full, options.data.resolve(), options.cache.resolve(), name)
        test = full[len(full) - HELD_OUT :]
        n = len(full.train)
        assert full.train == pool.train and full.test == pool.test  # noqa: PT018
        np.testing.assert_allclose(full.initial_loss[0], pool.initial_loss[0], atol=1e-6)
        drawn = {int(i) for curriculum in pool.curricula for i in curriculum.examples}
        assert drawn == set(pool_rows(n, 0.8))
        adam = features["adam"][:n] @ features["adam"][n:].T
        for fitted, unseen_train in ((full[:TRAIN], False), (pool[:TRAIN], True)):
            own = MeanTrajectory().fit(fitted).simulate(test.curricula, test.initial_loss)
            others = mean_of_others(fitted, test)
            predicted = {
                "persistence": (Persistence().fit(fitted).simulate(test.curricula, test.initial_loss),) * 2,
                "mean trajectory": (own, others),
                "auto": seen_only(AutoSimulator(), fitted, test),
                "auto, Adam-scaled scores": seen_only(AutoSimulator(scores=adam), fitted, test),
            }
            for label, model in MODELS.items():
                predicted[label] = by_features(model, features, fitted, test)
            for label, pair in predicted.items():
                for losses, baseline, unseen_test in ((pair[0], own, False), (pair[1], others, True)):
                    if losses is None:
                        continue
                    rows.append(
                        {"set": name, "simulator": label, "training examples": _seen(unseen_train)}
                        | {"test examples": _seen(unseen_test), "training runs": TRAIN}
                        | measure(losses, test.loss.astype(float), baseline, own)
                    )
                    print(rows[-1], flush=True)
    frame, file = pd.DataFrame(rows), RESULTS / "unseen.csv"
    if file.exists():  # rows of sets that were not asked for stay
        before = pd.read_csv(file)
        frame = pd.concat([before[~before["set"].isin(names)], frame], ignore_index=True)
    frame.to_csv(file, index=False, float_format="%.5g")
    (RESULTS / "unseen.md").write_text(to_markdown(frame))


def _seen(unseen: bool) -> str:
    return "a fifth unseen" if unseen else "seen"


def to_markdown(frame: pd.DataFrame) -> str:
    """Skill / final-step Spearman / across-runs Spearman, a column a case."""
    frame = frame.assign(
        figures=[
            f"{skill:+.2f} / {final:.2f} / {across:.2f}"
            for skill, final, across in frame[
                ["skill", "final-step Spearman", "across-runs Spearman"]
            ].to_numpy()
        ],
        case=frame["training examples"].map({"seen": "", "a fifth unseen": "unseen training "})
        + frame["test examples"].map({"seen": "", "a fifth unseen": "unseen test"}),
    )
    names = {
        "": "all seen",
        "unseen training ": "a fifth of training examples unseen",
        "unseen test": "test examples unseen",
        "unseen training unseen test": "both",
    }
    table = frame.pivot_table(
        index=["set", "simulator"], columns="case", values="figures", aggfunc="first", sort=False
    )
    return table[list(names)].rename(columns=names).fillna("").reset_index().to_markdown(index=False) + "\n"


if __name__ == "__main__":
    main()
