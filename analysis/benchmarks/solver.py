"""Fitting against scikit-learn, against separate fits, against gradient descent, and against size.

Equal answers are asserted before anything is timed. ``--large`` adds the case of 10 000 examples (minutes).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import torch
from common import environment, made_up_runs, side_by_side, write
from scipy import sparse
from sklearn.linear_model import Ridge

from simfluence import LinearSimulator, RunSet
from simfluence.runs import transitions

PENALTY = 1.0


def design(runs: RunSet, z: int, dense: bool):
    """[diag(L_{t-1}) U, U] and L_t of one test example."""
    rows = transitions(runs.runs)
    scaled = sparse.diags_array(rows.previous[:, z]) @ rows.counts
    x = sparse.hstack([scaled, rows.counts]).tocsr()
    return (x.toarray() if dense else sparse.csr_matrix(x)), rows.current[:, z]


def scikit_learn(x, y, **options) -> np.ndarray:
    return Ridge(alpha=PENALTY, fit_intercept=False, **options).fit(x, y).coef_


def fit(runs: RunSet, **options) -> LinearSimulator:
    return LinearSimulator(penalty=PENALTY, device="cpu", **options).fit(runs)


def coefficients(simulator: LinearSimulator, z: int) -> np.ndarray:
    return np.concatenate([simulator.A_[:, z], simulator.B_[:, z]])


def against_cholesky(n: int, runs: int, steps: int, target: float, sample: int, repeats: int) -> list[dict]:
    """A whole fit of ours, from runs to diagnostics, against Ridge.fit alone on designs that lie ready."""
    made, tests = made_up_runs(n, 64, runs, steps), 64
    ours = fit(made)
    rows = []
    for dense in (True, False):
        kind = "dense" if dense else "sparse"
        ready = [design(made, z, dense) for z in range(sample)]
        difference = max(
            np.abs(scikit_learn(*xy, solver="cholesky") - coefficients(ours, z)).max()
            for z, xy in enumerate(ready)
        )
        assert difference < 1e-8, difference
        mine, theirs = side_by_side(
            lambda: fit(made),
            lambda ready=ready: [scikit_learn(*xy, solver="cholesky") for xy in ready],
            repeats=repeats,
        )
        rows.append(
            {
                "case": f"n {n}, {tests} tests, {runs} × {steps}, linear",
                "against": f"Ridge(cholesky), {kind} designs, {sample} of {tests} tests",
                "ours s": mine[0],
                "theirs s": theirs[0] * tests / sample,
                "ratio": theirs[0] * tests / sample / mine[0],
                "CPU ratio": theirs[1] * tests / sample / mine[1],
                "at least": target if dense else np.nan,
                "largest difference": difference,
                "how": ours.diagnostics_["solver"],
            }
        )
    return rows


def against_separate_fits(repeats: int) -> dict:
    """Ten penalties, five folds: one call, against a fit and a simulation for every pair."""
    made = made_up_runs(200, 64, 20, 300)
    grid = [float(p) for p in 10.0 ** np.arange(-4, 6)]
    number = np.arange(len(made)) % 5
    folds = [(made[np.flatnonzero(number != k)], made[np.flatnonzero(number == k)]) for k in range(5)]

    def together() -> dict[str, float]:
        return LinearSimulator(penalties=grid, device="cpu").fit(made).penalty_errors_

    def separately() -> dict[str, float]:
        errors = {}
        for penalty in grid:
            parts = []
            for train, held_out in folds:
                fitted = LinearSimulator(penalty=penalty, device="cpu").fit(train)
                simulated = fitted.simulate(held_out.curricula, held_out.initial_loss)
                parts.append(np.mean(np.square(simulated - held_out.loss)[:, 1:]))
            errors[f"{penalty:g}"] = float(np.mean(parts))
        return errors

    a, b = together(), separately()
    difference = max(abs(a[key] / b[key] - 1) for key in a)
    assert min(a, key=a.__getitem__) == min(b, key=b.__getitem__)
    assert difference < 2e-3, difference
    mine, theirs = side_by_side(together, separately, repeats=repeats)
    return {
        "case": "ten λ × 5 folds over runs, first case, and the final fit",
        "against": "fifty separate fits of ours, and their rollouts",
        "ours s": mine[0],
        "theirs s": theirs[0],
        "ratio": theirs[0] / mine[0],
        "CPU ratio": theirs[1] / mine[1],
        "at least": 5,
        "largest difference": difference,
        "how": "errors of λ, relative; the same λ chosen",
    }


def large(sample: int, repeats: int) -> dict:
    """n 10 000; to be run in a process of its own, for its peak memory.

    Ours ``repeats`` times, and every time after it scikit-learn's for other test examples; medians.
    """
    fit(made_up_runs(1000, 16, 4, 100))  # compiled code is loaded, as it is for the other cases
    made = made_up_runs(10_000, 256, 32, 2500)
    mine, theirs, differences, peak = [], [], [], 0.0
    for repeat in range(repeats):
        began = time.perf_counter(), time.process_time()
        ours = fit(made)
        mine.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # not of theirs
        residual = ours.diagnostics_["residual"]
        for z in range(repeat * sample, (repeat + 1) * sample):
            x, y = design(made, z, dense=False)
            began = time.perf_counter(), time.process_time()
            found = scikit_learn(x, y, solver="sparse_cg", tol=residual, max_iter=100_000)
            theirs.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            differences.append(np.abs(found - coefficients(ours, z)).max())
    assert max(differences) < 1e-6, differences
    wall, cpu = (256 * statistics.median(taken[i] for taken in theirs) for i in (0, 1))
    own_wall, own_cpu = (statistics.median(taken[i] for taken in mine) for i in (0, 1))
    return {
        "case": "n 10 000, 256 tests, 32 × 2500, linear",
        "against": f"Ridge(sparse_cg, tol={residual:.0e}), {len(theirs)} of 256 tests",
        "ours s": own_wall,
        "theirs s": wall,
        "ratio": wall / own_wall,
        "CPU ratio": cpu / own_cpu,
        "at least": 10,
        "largest difference": max(differences),
        "how": f"{ours.diagnostics_['solver']}, {ours.diagnostics_['iterations']} iterations,"
        f" peak memory {peak:.1f} GiB",
    }


def against_gradient_descent(epochs: tuple[int, ...] = (10, 50, 200)) -> pd.DataFrame:
    """Embeddings of A and B, Adam, batches of 128 transitions, all test examples at once."""
    made = made_up_runs(200, 64, 25, 300)
    train, held_out = made[:20], made[20:]

    def error(simulator: LinearSimulator) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            simulated = simulator.simulate(held_out.curricula, held_out.initial_loss)
        return float(np.mean(np.square(simulated - held_out.loss)[:, 1:]))

    began = time.perf_counter()
    simulator = fit(train)
    rows = [{"fitted by": "ours, λ = 1", "s": time.perf_counter() - began, "rollout MSE": error(simulator)}]
    rows[0]["objective"] = _objective(simulator, train)
    batches = torch.from_numpy(np.concatenate([np.stack(list(c)) for c in train.curricula]))
    before = torch.from_numpy(np.concatenate([run.loss[:-1] for run in train])).float()
    after = torch.from_numpy(np.concatenate([run.loss[1:] for run in train])).float()
    for rate in (1e-3, 1e-2):
        torch.manual_seed(0)
        slope = torch.nn.Embedding(200, 64, _weight=torch.full((200, 64), 0.25))
        intercept = torch.nn.Embedding(200, 64, _weight=torch.zeros(200, 64))
        parameters = [slope.weight, intercept.weight]
        optimizer, spent = torch.optim.Adam(parameters, lr=rate), 0.0
        for epoch in range(1, max(epochs) + 1):
            began = time.perf_counter()
            for chosen in torch.randperm(len(batches)).split(128):
                optimizer.zero_grad()
                predicted = slope(batches[chosen]).sum(1) * before[chosen] + intercept(batches[chosen]).sum(1)
                share = len(chosen) / len(batches)
                penalty = share * PENALTY * sum(p.square().sum() for p in parameters)
                ((predicted - after[chosen]).square().sum() + penalty).backward()
                optimizer.step()
            spent += time.perf_counter() - began
            if epoch in epochs:
                simulator.A_, simulator.B_ = (p.detach().double().numpy().copy() for p in parameters)
                rows.append(
                    {
                        "fitted by": f"Adam {rate:g}, {epoch} epochs, started at A = 1/b",
                        "s": spent,
                        "rollout MSE": error(simulator),
                        "objective": _objective(simulator, train),
                    }
                )
    return pd.DataFrame(rows)


def _objective(simulator: LinearSimulator, runs: RunSet) -> float:
    """Σ (L_t − L̂_t)² + λ (‖A‖² + ‖B‖²), mean over test examples."""
    rows = transitions(runs.runs)
    predicted = (rows.counts @ simulator.A_) * rows.previous + rows.counts @ simulator.B_
    squares = np.square(predicted - rows.current).sum(0)
    return float(np.mean(squares + PENALTY * (np.square(simulator.A_) + np.square(simulator.B_)).sum(0)))


def slopes(repeats: int) -> pd.DataFrame:
    """d log seconds / d log size, one size doubled twice, the others as in the base case."""
    base = {"n": 200, "tests": 32, "runs": 10, "steps": 150}
    rows = []
    for solver in ("cholesky", "iterative"):
        for name in base:
            sizes, seconds = [], []
            for factor in (1, 2, 4):
                case = {**base, name: base[name] * factor}
                made = made_up_runs(case["n"], case["tests"], case["runs"], case["steps"])
                taken = side_by_side(
                    lambda made=made, solver=solver: fit(made, solver=solver), repeats=repeats
                )
                sizes.append(case[name])
                seconds.append(taken[0][1])
            slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
            rows.append(
                {"solver": solver, "size": name, "from .. to": f"{sizes[0]} .. {sizes[-1]}"}
                | {"CPU s": f"{seconds[0]:.3f} .. {seconds[-1]:.3f}", "slope": slope}
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only_large:
        print(json.dumps(large(sample=8, repeats=options.repeats)))
        return
    started = environment()
    rows = against_cholesky(200, 20, 300, target=40, sample=64, repeats=options.repeats)
    print(*rows, sep="\n", flush=True)
    rows += against_cholesky(1000, 20, 1000, target=30, sample=2, repeats=min(options.repeats, 2))
    print(*rows[-2:], sep="\n", flush=True)
    if options.large:
        arguments = [sys.executable, __file__, "--only-large", f"--threads={options.threads}"]
        arguments.append(f"--repeats={options.repeats}")
        said = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(said.splitlines()[-1]))
        print(rows[-1], flush=True)
    rows.append(against_separate_fits(min(options.repeats, 3)))
    print(rows[-1], flush=True)
    sections = {
        "Ratios": pd.DataFrame(rows),
        "Gradient descent (first case, five more runs held out)": against_gradient_descent(),
        "Cost against size (10 runs × 150 steps, n 200, 32 tests, batch 4, doubled twice)": slopes(
            options.repeats
        ),
    }
    notes = [
        "Ratios are of median wall-clock seconds of alternating repetitions in one process; CPU ratio alike,"
        " of processor time, which a busy machine disturbs less.",
        "Ours is the whole fit, from recorded runs to coefficients and diagnostics; scikit-learn's is"
        " Ridge.fit alone. Sparse designs are what scikit-learn can do at best with that solver.",
    ]
    write("solver", sections, notes, started)


if __name__ == "__main__":
    main()
