"""Runs that consume shares of groups: saved, read again, and refused where there is no room for amounts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simfluence import Curriculum, RunSet
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable, Run, gptfluence
from simfluence.simulators import AdditiveSimulator, DynamicsSimulator, MeanTrajectory

SHARES = np.array([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]])


def a_set() -> RunSet:
    """Two runs over three groups; the second consumes 1e6 / 3 units a step."""
    curricula = [Curriculum.from_shares(SHARES, 10), Curriculum.from_shares(SHARES[[1, 0]], 1e6 / 3)]
    losses = np.random.default_rng(0).uniform(1, 3, (4, 2))
    runs = [
        Run(
            id=f"run-{number}",
            curriculum=curriculum,
            metrics={"loss": losses[: len(curriculum) + 1]},
            evaluated=np.arange(len(curriculum) + 1),
            learning_rate=np.full(len(curriculum), 1e-3),
            train_loss=np.full(len(curriculum), np.nan),
        )
        for number, curriculum in enumerate(curricula)
    ]
    train, test = (
        ExampleTable.of([{"id": name} for name in names]) for names in (["a", "b", "c"], ["y", "z"])
    )
    return RunSet(runs, train, test)


def test_saved_runs_come_back_with_their_amounts(tmp_path: Path) -> None:
    runs = a_set()
    runs.save(tmp_path / "set")
    assert RunSet.load(tmp_path / "set").curricula == runs.curricula
    steps = pd.read_parquet(tmp_path / "set/run-0/steps.parquet")
    np.testing.assert_allclose(steps["amounts"][2], [1, 2, 7])


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_long_tables_hold_amounts(tmp_path: Path, name: str) -> None:
    runs = a_set()
    runs.to_table(tmp_path / name)
    again = RunSet.from_table(tmp_path / name, train=runs.train, test=runs.test)
    assert again.curricula == runs.curricula
    np.testing.assert_array_equal(again[0].loss, runs[0].loss)
    counted = RunSet.from_arrays([[[0], [1]]], np.ones((1, 3, 1))).to_table()
    assert "amount" not in counted


def test_a_long_table_has_all_amounts_or_none() -> None:
    table = a_set().to_table()
    table.loc[table["example"] == "b", "amount"] = np.nan
    with pytest.raises(RunDataError, match="no amount of 'b'"):
        RunSet.from_table(table)


def test_who_needs_counted_examples_refuses_shares(tmp_path: Path) -> None:
    runs = a_set()
    with pytest.raises(ValueError, match=r"'additive' \(for shares take 'auto'\) needs counted"):
        AdditiveSimulator().fit(runs)
    with pytest.raises(ValueError, match="'dynamics'"):
        DynamicsSimulator(np.ones((3, 2))).fit(runs)
    with pytest.raises(ValueError, match="GPTfluence's format needs counted"):
        gptfluence.write(runs, runs.train, runs.test, tmp_path)
    assert MeanTrajectory().fit(runs).simulate(runs.curricula, runs.initial_loss).shape == (2, 4, 2)


def test_a_simulator_of_counted_examples_simulates_no_shares() -> None:
    counted = RunSet.from_arrays([[[0], [1, 2]], [[2], [0]]], np.ones((2, 3, 2)), train=3)
    simulator = AdditiveSimulator(penalty=1.0).fit(counted)
    with pytest.raises(ValueError, match="counted examples"):
        simulator.simulate([Curriculum.from_shares(SHARES)], np.ones(2))
