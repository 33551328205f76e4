"""What influence functions approximate, and how well: the experiment of Grosse et al. (2023, section 5.1).

    python analysis/pbrf.py [--sets diabetes cancer digits facts] [--conditions 100 1000] [--seeds 3]

Networks are trained a while (not to the end) on scikit-learn's bundled sets, and MiniLM's last feed-forward
map and head on made-up facts. For some training examples the proximal Bregman response (PBRF) is found by
optimisation; each method's scores are correlated with it (Pearson's, over the training examples, a mean over
test examples). All methods have the same damping: the largest eigenvalue of the Gauss-Newton matrix over the
condition. "EK-FAC, own damping" has its default instead, a tenth of each layer's mean eigenvalue; "10 labels
drawn" an example, instead of one, have less noise. "G without blocks off the diagonal" is the exact matrix
within each layer, which EK-FAC approximates.

Responses are kept in analysis/results/pbrf/, one safetensors file a network, and rows written to
analysis/results/pbrf.csv as they come: an interrupted run goes on where it was. Then the figure, pbrf.png.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from torch import nn

from simfluence.attribution import (
    Classification,
    InfluenceScores,
    Objective,
    Regression,
    ekfac,
    ekfac_factors,
    gradient_similarity,
)
from simfluence.attribution.curvature import GaussNewton
from simfluence.attribution.influence import influence
from simfluence.attribution.inverse import ConjugateGradient, ConvergenceWarning, Lissa
from simfluence.attribution.pbrf import proximal_bregman_response

mpl.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
KEY = ["condition", "set", "seed", "method"]
METHODS = [
    "gradient dot product",
    "EK-FAC",
    "EK-FAC, 10 labels drawn",
    "EK-FAC, own damping",
    "G without blocks off the diagonal",
    "LiSSA, last iterate",
    "LiSSA",
    "CG",
]


@dataclass(frozen=True)
class Problem:
    """A trained network and its examples; the first ``sources`` training examples get a PBRF."""

    objective: Objective
    train: list[Any]
    test: list[Any]
    sources: int
    tolerance: float
    parameters: Sequence[str] | None = None


# -------------------------------------------------------------------------------------- networks


def tabular(name: str, seed: int) -> Problem:
    """A network with two hidden layers of 32 on a bundled set of scikit-learn."""
    load = {"diabetes": datasets.load_diabetes, "digits": datasets.load_digits}.get(
        name, datasets.load_breast_cancer
    )
    x, y = load(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))[:340]
    x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    regression = name == "diabetes"
    y = (y - y.mean()) / y.std() if regression else y
    examples = [
        (torch.from_numpy(x[i]), torch.tensor([y[i]]) if regression else torch.tensor(int(y[i])))
        for i in order
    ]
    torch.manual_seed(seed)
    outputs = 1 if regression else int(y.max()) + 1
    module = nn.Sequential(
        nn.Linear(x.shape[1], 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, outputs)
    ).double()
    objective = Regression(module) if regression else Classification(module)
    train, test = examples[:300], examples[300:320]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.03, momentum=0.9)
    fit(objective, train, optimizer, epochs=20, batch=32, rng=rng)
    return Problem(objective, train, test, sources=30, tolerance=1e-4)


def facts(seed: int) -> Problem:
    """MiniLM on made-up facts; the last feed-forward output map and the head are trained."""
    from simfluence.finetuning.experiment import prepare

    prepared = prepare(
        {
            "task": {"source": "facts", "n_train": 40, "n_test": 10, "seed": seed},
            "model": {"name": "minilm", "dropout": 0.0, "max_length": 64, "seed": seed},
            "tuning": {"name": "last_layers", "layers": 1},
        }
    )
    model, task = prepared.model.double(), prepared.task
    chosen = ["encoder.encoder.layer.5.output.dense", "head"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(chosen)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4)
    fit(model, task.train, optimizer, epochs=5, batch=4, rng=np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    train = [task.train[i] for i in rng.permutation(len(task.train))]
    return Problem(model, train, task.test, sources=12, tolerance=1e-3, parameters=chosen)


def fit(objective: Any, train: list, optimizer: Any, *, epochs: int, batch: int, rng: Any) -> None:
    for _ in range(epochs):
        order = rng.permutation(len(train))
        for start in range(0, len(train), batch):
            optimizer.zero_grad()
            objective.losses([train[i] for i in order[start : start + batch]]).mean().backward()
            optimizer.step()
    optimizer.zero_grad()
    objective.module.eval()


# --------------------------------------------------------------------------------------- methods


def methods(problem: Problem, damping: float) -> dict[str, Callable[[], InfluenceScores]]:
    """Name → scores of the sources for all test examples."""
    objective, test = problem.objective, problem.test
    sources = problem.train[: problem.sources]
    shared = {"parameters": problem.parameters}
    with_g = {**shared, "damping": damping, "curvature": problem.train}
    small = len(problem.train) > 100
    lissa = Lissa(max_depth=3000) if small else Lissa(batch_size=8, max_depth=200)
    found: dict[str, Callable[[], InfluenceScores]] = {
        "gradient dot product": lambda: gradient_similarity(objective, sources, test, **shared),
        "CG": lambda: influence(
            objective, sources, test, solver=ConjugateGradient(1e-4 if small else 1e-2), **with_g
        ),
        "LiSSA": lambda: influence(objective, sources, test, solver=lissa, **with_g),
    }
    if small:
        found["LiSSA, last iterate"] = lambda: influence(
            objective, sources, test, solver=replace(lissa, averaged=False), **with_g
        )
        found["G without blocks off the diagonal"] = lambda: layer_by_layer(problem, damping)
    for method, draws, chosen in (
        ("EK-FAC", 1, damping),
        ("EK-FAC, 10 labels drawn", 10, damping),
        ("EK-FAC, own damping", 1, None),
    ):
        found[method] = lambda draws=draws, chosen=chosen: ekfac(  # type: ignore[misc]
            objective, sources, test, damping=chosen,
            factors=ekfac_factors(objective, problem.train * draws, parameters=problem.parameters),
        )  # fmt: skip
    return found


def layer_by_layer(problem: Problem, damping: float) -> InfluenceScores:
    """Influence with the exact G but for the products between layers: what EK-FAC approximates."""
    scores = np.zeros((problem.sources, len(problem.test)))
    layers = dict.fromkeys(name.rpartition(".")[0] for name, _ in problem.objective.module.named_parameters())
    for layer in layers:
        scores = scores + influence(
            problem.objective, problem.train[: problem.sources], problem.test, solver="exact",
            damping=damping, curvature=problem.train, parameters=[layer],
        ).scores  # fmt: skip
    return InfluenceScores(scores, "influence_blocks")


def correlation(scores: np.ndarray, truth: np.ndarray) -> float:
    """Pearson's over sources, a mean over test examples."""
    a, b = (values - values.mean(0) for values in (scores, truth))
    return float(((a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))).mean())


def response(problem: Problem, damping: float, path: Path) -> InfluenceScores:
    """The PBRF, found now or kept from an earlier time."""
    if path.exists() and np.isclose(
        (kept := InfluenceScores.load(path)).provenance["damping"], damping, rtol=1e-6
    ):
        return kept
    found = proximal_bregman_response(
        problem.objective, problem.train, problem.test, damping=damping,
        sources=range(problem.sources), parameters=problem.parameters, tolerance=problem.tolerance,
    )  # fmt: skip
    found.save(path)
    return found


# ------------------------------------------------------------------------------------ the loop


def run(sets: Sequence[str], seeds: int, condition: int, csv: Path) -> None:
    for seed in range(seeds):
        for name in sets:
            torch.manual_seed(seed)
            problem = facts(seed) if name == "facts" else tabular(name, seed)
            matrix = GaussNewton(problem.objective, problem.train, parameters=problem.parameters)
            damping = matrix.largest_eigenvalue(iterations=50) / condition
            pending = [m for m in methods(problem, damping) if not _done(csv, (condition, name, seed, m))]
            if not pending:
                continue
            start = time.perf_counter()
            truth = response(problem, damping, csv.parent / "pbrf" / f"{name}-{condition}-{seed}.safetensors")
            print(
                f"{condition} {name} {seed}: PBRF {time.perf_counter() - start:.0f} s, λ = {damping:.3g}",
                flush=True,
            )
            for method in pending:
                start = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)  # the residual is in the table
                    scores = methods(problem, damping)[method]()
                _append(
                    csv,
                    {
                        "condition": condition, "set": name, "seed": seed, "method": method,
                        "correlation": round(correlation(scores.scores, truth.scores), 4),
                        "residual": scores.provenance.get("residual"),
                        "seconds": round(time.perf_counter() - start, 1),
                        "damping": damping, "parameters": matrix.size,
                        "training examples": len(problem.train),
                        "sources": problem.sources, "test examples": len(problem.test),
                        "largest PBRF gradient left": max(truth.provenance["gradients"]),
                    },
                )  # fmt: skip


def _done(csv: Path, row: tuple[int, str, int, str]) -> bool:
    return csv.exists() and row in set(pd.read_csv(csv)[KEY].itertuples(index=False, name=None))


def _append(csv: Path, row: dict[str, Any]) -> None:
    old = pd.read_csv(csv) if csv.exists() else pd.DataFrame()
    csv.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([old, pd.DataFrame([row])]).to_csv(csv, index=False)
    print({key: row[key] for key in (*KEY, "correlation", "residual", "seconds")}, flush=True)


def draw(csv: Path) -> None:
    """Mean and standard error over seeds, and the seeds themselves, one panel a condition."""
    rows = pd.read_csv(csv)
    table = rows.groupby([*KEY[:2], "method"])["correlation"].agg(["mean", "sem", "count"])
    print(table.round(3).to_string())
    conditions = sorted(rows["condition"].unique())
    order = [method for method in METHODS if method in set(rows["method"])]
    figure, panels = plt.subplots(
        1, len(conditions), figsize=(1 + 4.5 * len(conditions), 3.8), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, condition in zip(panels[0], conditions, strict=True):
        panel(axes, rows[rows["condition"] == condition], order)
        axes.set_title(f"damping = largest eigenvalue / {condition}", fontsize=10)
    panels[0, 0].set_ylabel("correlation with PBRF")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, fontsize=8, loc="outside upper center", frameon=False)
    figure.savefig(csv.with_suffix(".png"), dpi=150)


def panel(axes: plt.Axes, rows: pd.DataFrame, order: list[str]) -> None:
    sets = list(rows["set"].unique())
    for number, method in enumerate(order):
        at = np.arange(len(sets)) + 0.85 * (number - (len(order) - 1) / 2) / len(order)
        some = [rows[(rows["set"] == name) & (rows["method"] == method)]["correlation"] for name in sets]
        means, errors = [s.mean() for s in some], [s.sem() if len(s) > 1 else 0 for s in some]
        axes.bar(at, means, 0.8 / len(order), yerr=errors, label=method, color=f"C{number}", alpha=0.7)
        for x, values in zip(at, some, strict=True):
            axes.plot(np.full(len(values), x), values, ".", color="black", markersize=3)
    axes.set_xticks(range(len(sets)), sets)
    axes.axhline(0, color="black", linewidth=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["diabetes", "cancer", "digits", "facts"])
    parser.add_argument("--conditions", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed of the smallest set, elsewhere")
    arguments = parser.parse_args()
    csv = RESULTS / "pbrf.csv"
    if arguments.quick:
        arguments.sets, arguments.seeds, csv = ["diabetes"], 1, Path(tempfile.mkdtemp()) / "pbrf.csv"
        arguments.conditions = [100]
    (csv.parent / "pbrf").mkdir(parents=True, exist_ok=True)
    for condition in arguments.conditions:
        run(arguments.sets, arguments.seeds, condition, csv)
    draw(csv)


if __name__ == "__main__":
    main()
