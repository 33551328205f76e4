"""Every simulator on every recorded run set: held-out skill against the number of training runs.

    python analysis/simulators.py [folder ...] [--held-out 10] [--sizes 1 2 4 8 12 16 20 22] [--quick]

Takes all run sets under runs/ (but those of unseen.py, named …-pool) and the folders given. The last
``--held-out`` runs are scored, the first ones train. ``scores.safetensors`` or ``scores.npz`` (array
``scores`` [train, test], positive lowers the loss) beside a set adds the attribution-informed simulators, and
``scores_adam`` and ``scores_along`` ([step, train, test]) of either form those again.
Writes analysis/results/simulators.csv (one row a set, simulator, number of training runs and metric) after
every fit, so that an interrupted run goes on where it was; rows of a set that has changed since are made
again. Then analysis/results/simulators.png, the learning curves.
"""

from __future__ import annotations

import argparse
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from simfluence.evaluation import metrics
from simfluence.runs import RunSet
from simfluence.simulators import (
    AdditiveSimulator,
    AutoSimulator,
    DynamicsSimulator,
    EffectsSimulator,
    LinearSimulator,
    MeanTrajectory,
    MultiplicativeSimulator,
    Persistence,
    PredictiveBands,
    ScoresSimulator,
    Simulator,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
Make = Callable[[], Simulator]
KINDS = {"scores": "scores", "Adam's scores": "scores_adam", "scores along a run": "scores_along"}
ASIDE = ["set", "fingerprint"]
COLUMNS = [
    "task",
    "model",
    "tuning",
    "simulator",
    "training runs",
    "metric",
    "mean",
    "standard error",
    "runs",
]


def simulators(scores: dict[str, np.ndarray], quick: bool) -> dict[str, Make]:
    """What is compared, by name."""
    made: dict[str, Make] = {
        "persistence": Persistence,
        "mean trajectory": MeanTrajectory,
        "auto": AutoSimulator,
    }
    if not quick:
        made |= {
            "additive": AdditiveSimulator,
            "multiplicative": MultiplicativeSimulator,
            "linear": LinearSimulator,
            "linear, pooled": lambda: LinearSimulator(center="pooled"),
            "effects, constant, no momentum": lambda: EffectsSimulator(
                momentum=0.0, noise_correlation=0.0, decay=0.0
            ),
            "effects": EffectsSimulator,
            "effects with dynamics": lambda: EffectsSimulator(kernel="effects"),
        }
    for kind, array in scores.items():
        made[f"auto, {kind}"] = partial(AutoSimulator, array)
        made[f"{kind}, calibrated"] = partial(ScoresSimulator, array)
        made[f"{kind}, dynamics"] = partial(DynamicsSimulator, array)
        made[f"{kind}, dynamics and effects"] = partial(EffectsSimulator, array, kernel="scores")
    return made


def read_scores(folder: Path) -> dict[str, np.ndarray]:
    """Those that lie beside a set, [train, test] or [step, train, test], by kind."""
    found = {}
    for kind, name in KINDS.items():
        if (folder / f"{name}.safetensors").exists():
            found[kind] = load_file(folder / f"{name}.safetensors")["scores"].astype(np.float64)
        elif (folder / f"{name}.npz").exists():
            with np.load(folder / f"{name}.npz") as file:
                found[kind] = file["scores"].astype(np.float64)
    return found


def run_sets(folders: list[Path]) -> Iterator[tuple[Path, RunSet]]:
    """The given folders and all under runs/, those with runs of equal tables and at least four."""
    found = sorted(path.parent for path in Path("runs").glob("*/examples.parquet"))
    found = [folder for folder in found if not folder.name.endswith("-pool")]  # for unseen.py
    for folder in dict.fromkeys([*folders, *found]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs = RunSet.load(folder)
        if len(runs) >= 4:
            yield folder, runs


def about(runs: RunSet, folder: Path) -> dict[str, str]:
    """Task, model and tuning as the runs' configurations say."""
    config = runs[0].config

    def name(key: str) -> str:
        value = config.get(key, "")
        return str(value.get("name", "")) if isinstance(value, dict) else str(value)

    return {"task": name("task") or folder.name, "model": name("model"), "tuning": name("tuning")}


def measure(make: Make, train: RunSet, test: RunSet) -> dict[str, np.ndarray]:
    """Metric → one value a held-out run (or a test example, for the correlation across runs)."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulator = make().fit(train)
        seconds = time.perf_counter() - start
        losses = simulator.simulate(test.curricula, test.initial_loss)
    mean = MeanTrajectory().fit(train).simulate(test.curricula, test.initial_loss)
    mse, base = (metrics.all_steps_mse(test.loss, simulated).mean(1) for simulated in (losses, mean))
    final, true = metrics.final_loss(losses), metrics.final_loss(test.loss)
    values = {
        "all-steps MSE": mse,
        "skill": 1 - mse / base.mean(),
        "final-step Spearman": metrics.final_step_spearman(true, final),
        "across-runs Spearman": metrics.across_runs_spearman(true, final),
        "seconds to fit": np.array([seconds]),
    }
    if make in (MeanTrajectory, AutoSimulator) and len(train) >= 5:
        values |= band(simulator, train, test)
    return values


def band(simulator: Simulator, train: RunSet, test: RunSet) -> dict[str, np.ndarray]:
    """Coverage and width of 90% bands, one value a held-out run."""
    low, high = PredictiveBands(simulator).fit(train).predict(test.curricula, test.initial_loss)
    inside = (low <= test.loss) & (test.loss <= high)
    return {
        "coverage of 90% bands": inside[:, 1:].mean((1, 2)),
        "coverage of 90% bands, final step": inside[:, -1].mean(1),
        "width of 90% bands": (high - low)[:, 1:].mean((1, 2)),
        "width of 90% bands, final step": (high - low)[:, -1].mean(1),
    }


def fingerprint(runs: RunSet, held_out: int, scores: np.ndarray | None) -> str:
    data = [run.loss.tobytes() for run in runs] + [str(held_out).encode()]
    data += [] if scores is None else [scores.tobytes()]
    return hashlib.sha256(b"".join(data)).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--held-out", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16, 20, 22])
    parser.add_argument(
        "--quick", action="store_true", help="the trivial simulators, auto and those with scores only"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    table = options.output / "simulators.csv"
    frame = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=COLUMNS + ASIDE)
    for folder, runs in run_sets(options.folders):
        scores = read_scores(folder)
        held_out = min(options.held_out, len(runs) // 3)
        marks = {kind: fingerprint(runs, held_out, scores.get(kind)) for kind in KINDS}
        frame = frame[(frame["set"] != folder.name) | frame["fingerprint"].isin(marks.values())]
        test = runs[len(runs) - held_out :]
        for size in [size for size in options.sizes if size + held_out <= len(runs)]:
            for name, make in simulators(scores, options.quick).items():
                mark = marks[next((kind for kind in reversed(KINDS) if kind in name), "scores")]
                same = (frame["set"] == folder.name) & (frame["simulator"] == name)
                same &= (frame["fingerprint"] == mark) & (frame["training runs"] == size)
                if same.any():
                    continue
                try:
                    measured = measure(make, runs[:size], test)
                except ValueError as error:  # too few runs to choose a penalty
                    print(f"{folder.name}: {name} on {size} runs: {error}", flush=True)
                    continue
                key = {**about(runs, folder), "simulator": name, "training runs": size}
                rows = [
                    {**key, "metric": metric, **summary(values), "set": folder.name, "fingerprint": mark}
                    for metric, values in measured.items()
                ]
                new = pd.DataFrame(rows)
                frame = new if frame.empty else pd.concat([frame, new], ignore_index=True)
                frame = frame.astype({"training runs": int})
                frame = frame.sort_values(["set", "training runs"], kind="stable", ignore_index=True)
                frame.to_csv(table, index=False, float_format="%.6g")
                skill, across = (summary(measured[m])["mean"] for m in ("skill", "across-runs Spearman"))
                print(f"{folder.name:28} {size:3} {name:30} {skill:+.3f} {across:+.3f}", flush=True)
    draw(frame, options.output / "simulators.png")


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean, standard error and number of the values that are defined."""
    known = values[np.isfinite(values)]
    if not known.size:
        return {"mean": np.nan, "standard error": np.nan, "runs": 0}
    error = known.std(ddof=1) / np.sqrt(known.size) if known.size > 1 else np.nan
    return {"mean": known.mean(), "standard error": error, "runs": known.size}


def draw(frame: pd.DataFrame, file: Path) -> None:
    """Skill against training runs, one panel a set."""
    skill = frame[(frame["metric"] == "skill") & (frame["simulator"] != "persistence")]
    sets = sorted(skill["set"].unique())
    if not sets:
        return
    names = list(skill["simulator"].unique())  # one colour a simulator in all panels
    colour = {name: plt.colormaps["tab20"](i / max(len(names), 20)) for i, name in enumerate(names)}
    figure, panels = plt.subplots(1, len(sets), figsize=(4.2 * len(sets), 5), sharey=True, squeeze=False)
    for panel, name in zip(panels[0], sets, strict=True):
        for simulator, rows in skill[skill["set"] == name].groupby("simulator", sort=False):
            rows = rows.astype({"training runs": int, "mean": float}).sort_values("training runs")
            strong = str(simulator).startswith("auto")
            width = 2.5 if strong else 1
            panel.plot(
                rows["training runs"],
                rows["mean"],
                marker=".",
                label=simulator,
                lw=width,
                color=colour[simulator],
            )
        panel.set(title=name, xlabel="training runs", ylim=(-0.5, 1))
        panel.axhline(0, color="grey", lw=0.5)
    panels[0][0].set_ylabel("counterfactual skill on held-out runs")
    handles = {
        line.get_label(): line
        for panel in panels[0]
        for line in panel.get_lines()
        if line.get_marker() == "."
    }
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=7, fontsize=8, frameon=False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
