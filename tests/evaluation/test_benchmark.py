"""The benchmark: every method in one table, cells kept and taken up again, methods of one's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import synthetic_runs

from simfluence import Curriculum, RunSet, evaluate
from simfluence.attribution import InfluenceScores
from simfluence.evaluation import (
    Method,
    benchmark,
    get_results,
    score_methods,
    simulator_methods,
    to_latex,
)
from simfluence.evaluation.benchmark import needs
from simfluence.simulators import LinearSimulator

LINEAR = {"linear": {"name": "linear", "penalty": 0.1}}


@pytest.fixture(scope="module")
def runs() -> RunSet:
    return synthetic_runs(n_runs=12)[0]


class Oracle:
    """A method of one's own that needs no fit: it has seen the test runs."""

    def __init__(self, runs: RunSet) -> None:
        self.losses = {run.curriculum.fingerprint: run.loss for run in runs}

    def simulate(self, curricula: list[Curriculum], initial_loss: np.ndarray) -> np.ndarray:
        return np.stack([self.losses[curriculum.fingerprint] for curriculum in curricula])


def test_numbers_are_those_of_evaluate(runs: RunSet) -> None:
    found = benchmark(runs, simulator_methods(LINEAR), train=6, validation=2, progress=False)
    train, validation, test = runs.split(6, 2, 4)
    expected = evaluate({"linear": LinearSimulator(0.1)}, train, test, validation).scores
    key = ["method", "metric", "run", "test_example"]
    mine, theirs = (frame.set_index(key)["value"].sort_index() for frame in (found.of_runs, expected))
    assert mine.index.equals(theirs.index)
    np.testing.assert_array_equal(mine, theirs)


def test_a_method_of_ones_own_stands_in_the_same_table(runs: RunSet) -> None:
    found = benchmark(runs, [Method("mine", partial(Oracle, runs))], train=6, validation=2, progress=False)
    table = found.table()
    assert list(table.index) == ["persistence", "mean_trajectory", "mine"]
    assert table.loc["mine", "skill"] == "1"
    assert table.loc["mine", "caution"] == "fitted to 6 runs; tested on 4 runs"
    assert table.loc["mean_trajectory", "caution"] == "tested on 4 runs"  # a baseline is no small fit


def test_cells_are_kept_and_taken_up_again(runs: RunSet, tmp_path: Path) -> None:
    """A second call computes nothing; other runs, or other options, are other cells."""
    fits: list[int] = []

    class Counting(LinearSimulator):
        def fit(self, train: RunSet, validation: RunSet | None = None) -> Any:
            fits.append(len(train))
            return super().fit(train, validation)

    kept = Method("linear", lambda: Counting(0.1), key="linear 0.1")
    ask = partial(benchmark, train=6, validation=2, folder=tmp_path, progress=False)
    first, second = ask(runs, [kept]), ask(runs, [kept])
    assert fits == [6]
    assert first.scores.equals(second.scores)
    ask(runs, [Method("linear", lambda: Counting(0.2), key="linear 0.2")])
    ask(runs[1:], [kept])
    assert fits == [6, 6, 6]
    ask(runs, [Method("linear", lambda: Counting(0.1))])
    assert len(fits) == 4  # without a key nothing is kept


def test_fewer_runs_and_losses_at_fewer_steps(runs: RunSet) -> None:
    """Only the training runs are thinned; tests are the same for all."""
    seen: dict[str, tuple[int, list[int]]] = {}

    class Seeing(LinearSimulator):
        def fit(self, train: RunSet, validation: RunSet | None = None) -> Any:
            seen[str(self.penalty)] = len(train), list(train[0].evaluated)
            return super().fit(train, None)

    steps = len(runs[0])
    methods = [
        Method("few", lambda: Seeing(1.0), runs=2),
        Method("thinned", lambda: Seeing(2.0), every=3),
    ]
    found = benchmark(runs, methods, train=6, validation=2, progress=False)
    assert seen["1.0"] == (2, list(range(steps + 1)))
    assert seen["2.0"] == (6, sorted({*range(0, steps + 1, 3), steps}))
    assert (found.of_cells["test_runs"] == 4).all()
    assert found.of_cells.loc["few", "training_runs"] == 2


def test_files_of_scores_and_what_simulators_need(runs: RunSet, tmp_path: Path) -> None:
    shape = len(runs.train), len(runs.test)
    file = tmp_path / "made_up.safetensors"
    InfluenceScores(np.random.default_rng(0).normal(size=shape), "made up", weighing="use").save(file)
    names = [method.name for method in score_methods([file], runs)]
    assert names[:2] == ["made up, calibrated", "made up, as is"]
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(file.read_bytes())
    assert f"made up, as is ({copied})" in [method.name for method in score_methods([file, copied], runs)]
    asked = needs({**LINEAR, "auto": {"name": "auto", "scores": None}}, [file], [1, 4, 99], [2], len(runs))
    assert [method.name for method in asked] == [
        *("linear, 1 run", "linear, 4 runs", "linear", "auto, 1 run", "auto, 4 runs", "auto"),
        *("linear, losses every 2 steps", "auto, losses every 2 steps"),
        *("auto, scores of made_up, 1 run", "auto, scores of made_up"),
    ]
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / file.name
    again.write_bytes(file.read_bytes())
    both = [
        method.name for method in needs({"auto": {"name": "auto", "scores": None}}, [file, again], [], [], 9)
    ]
    assert both == ["auto", f"auto, scores of {file}", f"auto, scores of {again}"]


def test_bad_input(runs: RunSet) -> None:
    ask = partial(benchmark, runs, train=6, validation=2, progress=False)
    with pytest.raises(ValueError, match="two methods are named 'linear'"):
        ask([*simulator_methods(LINEAR), *simulator_methods(LINEAR)])

    class OfAnotherShape:
        def simulate(self, curricula: list[Curriculum], initial_loss: np.ndarray) -> np.ndarray:
            return initial_loss

    with pytest.raises(ValueError, match=r"mine: expected losses \[run, step \+ 1, test\] = \(4, "):
        ask([Method("mine", OfAnotherShape)])


def test_tables_in_latex(runs: RunSet) -> None:
    found = benchmark(runs, simulator_methods(LINEAR), train=6, validation=2, progress=False)
    text = to_latex(found.table())
    assert text.startswith("\\begin{tabular}")
    assert "\\toprule" in text
    assert "mean\\_trajectory" in text
    assert not set("±ρ−–") & set(text)


def test_our_results_can_be_put_beside() -> None:
    everything = get_results()
    assert list(everything) == ["set", "method", "metric", "mean", "spread", "n"]
    name = everything["set"].iloc[0]
    one = get_results(name, "mean_trajectory").set_index("metric")["mean"]
    assert one["skill"] == 0
    assert one["mse"] > 0
    with pytest.raises(ValueError, match="there is no method 'mine'; there are persistence"):
        get_results(method="mine")
