"""One standard for all simulators: fit on training runs, choose on validation runs, score on test runs.

A simulator sees of a test run its curriculum and its losses before the first step, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from simfluence.evaluation import metrics
from simfluence.evaluation.metrics import Array
from simfluence.evaluation.tables import to_markdown
from simfluence.runs import RunSet
from simfluence.simulators import DynamicsSimulator, MeanTrajectory, Persistence, ScoresSimulator, Simulator

CONSTANT_OVER_RUNS = ("persistence", "mean_trajectory")
"""Simulators that cannot rank curricula: they have no across-runs correlation."""


@dataclass(frozen=True)
class Evaluation:
    """What came of it; ``print`` shows it as a table.

    scores : long frame: run, test_example, method, metric, value. "mse" and "mae" are per run and test
        example, "final_spearman" per run (test_example ""), "across_runs_spearman" per test example
        (run ""). It has every number, also of methods that tables call "off scale" (tables.off_scale).
    simulated : method → float [run, step + 1, test]. runs : the test runs.
    simulators : method → the fitted simulator.
    """

    scores: pd.DataFrame
    simulated: dict[str, Array]
    runs: RunSet
    simulators: dict[str, Simulator]

    def __str__(self) -> str:
        return to_markdown(self.scores)

    def skill(self, method: str) -> tuple[float, float]:
        """1 − MSE / MSE of the mean trajectory, over all steps and at every run's last evaluated one."""
        true = self.runs.loss
        all_steps, at_the_end = [], []
        for name in (method, MeanTrajectory.name):
            simulated = self.simulated[name]
            all_steps.append(metrics.all_steps_mse(true, simulated))
            ends = metrics.final_loss(simulated, known=true) - metrics.final_loss(true)
            at_the_end.append(np.square(ends))
        return metrics.counterfactual_skill(*all_steps), metrics.counterfactual_skill(*at_the_end)


def evaluate(
    simulators: Mapping[str, Simulator], train: RunSet, test: RunSet, validation: RunSet | None = None
) -> Evaluation:
    """Fit each simulator and score its rollouts on the test runs.

    Both baselines are added if they are not among them: persistence, which tells errors that are off scale,
    and the mean trajectory, against which skill is measured.

    Raises ValueError if a run is both trained on and tested on, RunDataError if the test runs are about other
    examples.
    """
    fitted_on = set(train.ids) | set(validation.ids if validation is not None else [])
    if both := sorted(fitted_on & set(test.ids)):
        raise ValueError(f"runs must not stand on both sides of a split, but {both[:5]} do")
    if len(test) == 0:
        raise ValueError("evaluate() needs at least one test run")
    simulators = dict(simulators)
    for baseline in (Persistence(), MeanTrajectory()):
        simulators.setdefault(baseline.name, baseline)
    curricula, initial_loss = test.curricula, test.initial_loss
    simulated = {}
    for method, simulator in simulators.items():
        simulator.fit(train, validation).check_examples(test)
        simulated[method] = simulator.simulate(curricula, initial_loss)
    frames = [score(method, test, losses) for method, losses in simulated.items()]
    return Evaluation(pd.concat(frames, ignore_index=True), simulated, test, simulators)


def scores_as_simulators(files: Sequence[str], runs: RunSet) -> dict[str, Simulator]:
    """Simulators of files of attribution scores, by name.

    Of each file: added up with one calibrated scalar; as they are, where they have units; and as the kernel
    of training dynamics, where all losses of the runs are above 0.
    """
    from simfluence.scores import InfluenceScores

    found: dict[str, Simulator] = {}
    for file in files:
        scores = InfluenceScores.load(file)
        name = scores.method if f"{scores.method}, calibrated" not in found else f"{scores.method} ({file})"
        found[f"{name}, calibrated"] = ScoresSimulator(scores)
        if scores.weighing:
            found[f"{name}, as is"] = ScoresSimulator(scores, calibrated=False)
        if not (runs.loss <= 0).any():  # NaN where not evaluated
            found[f"{name}, dynamics"] = DynamicsSimulator(scores)
    return found


def score(method: str, runs: RunSet, simulated: Array) -> pd.DataFrame:
    """The scores of simulated losses [run, step + 1, test] as a long frame (see :class:`Evaluation`)."""
    true = runs.loss
    true_final, final = metrics.final_loss(true), metrics.final_loss(simulated, known=true)
    each = [(run, test) for run in runs.ids for test in runs.test.ids]
    frames = [
        _frame(method, "mse", each, metrics.all_steps_mse(true, simulated).ravel()),
        _frame(method, "mae", each, metrics.all_steps_mae(true, simulated).ravel()),
        _frame(
            method,
            "final_spearman",
            [(run, "") for run in runs.ids],
            metrics.final_step_spearman(true_final, final),
        ),
    ]
    if method not in CONSTANT_OVER_RUNS:
        across = metrics.across_runs_spearman(true_final, final)
        frames.append(_frame(method, "across_runs_spearman", [("", z) for z in runs.test.ids], across))
    return pd.concat(frames, ignore_index=True)


def _frame(method: str, metric: str, keys: list[tuple[str, str]], values: Any) -> pd.DataFrame:
    run, test = zip(*keys, strict=True)
    return pd.DataFrame(
        {"run": run, "test_example": test, "method": method, "metric": metric, "value": np.asarray(values)}
    )
