"""``simfluence benchmark``, as a user types it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families import synthetic_runs

from simfluence.attribution import InfluenceScores
from simfluence.evaluation.standards import SubsetBank, random_subsets


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which runs/small holds ten synthetic runs, with a file of scores beside it."""
    folder = tmp_path_factory.mktemp("project")
    runs, *_ = synthetic_runs(n_runs=10, noise=0.01)
    runs.save(folder / "runs" / "small")
    shape = len(runs.train), len(runs.test)
    scores = InfluenceScores(np.random.default_rng(0).normal(size=shape), "made_up", weighing="use")
    scores.save(folder / "runs" / "small" / "scores.safetensors")
    scores.save(folder / "elsewhere.safetensors")
    return folder


COMMAND = ("benchmark", "path=runs/small", "train=5", "validation=1", "sizes=[2]", "every=[3]", "processes=1")


def test_tables_and_figures_of_ones_own_runs(simfluence, recorded: Path) -> None:
    result = simfluence(*COMMAND, "methods=[linear,auto]", "output=first", cwd=recorded)
    assert result.returncode == 0, result.stderr
    for name in ("main", "comparison", "needs"):
        assert {file.suffix for file in (recorded / "first").glob(f"{name}.*")} == {".md", ".csv", ".tex"}
    assert (recorded / "first" / "cost.pdf").exists()
    main = pd.read_csv(recorded / "first" / "main.csv", index_col="method")
    expected = ["linear", "auto", "made_up, calibrated", "made_up, as is", "made_up, dynamics"]
    assert list(main.index) == ["persistence", "mean_trajectory", *expected]
    assert "skill" in result.stdout
    needs = pd.read_csv(recorded / "first" / "needs.csv", index_col="method")
    assert {"linear, 2 runs", "auto, losses every 3 steps", "auto, scores of scores, 2 runs"} <= set(
        needs.index
    )
    assert not needs.isna().drop(columns="caution").any(axis=None)
    cells = sorted((recorded / "first" / "cells").iterdir())
    again = simfluence(*COMMAND, "methods=[linear,auto]", "output=first", cwd=recorded)
    assert again.stdout == result.stdout
    assert "cell" not in again.stderr  # no progress: nothing was left to compute
    assert sorted((recorded / "first" / "cells").iterdir()) == cells


def test_few_test_runs_are_said_and_not_compared(simfluence, recorded: Path) -> None:
    result = simfluence(*COMMAND, "methods=[linear]", "test=2", "output=few", cwd=recorded)
    assert result.returncode == 0, result.stderr
    assert "tested on 2 runs" in result.stdout
    assert (recorded / "few" / "needs.md").exists()
    assert not (recorded / "few" / "comparison.md").exists()


def test_a_file_of_scores_is_a_method(simfluence, recorded: Path) -> None:
    options = ("methods=[linear,elsewhere.safetensors]", "scores=false", "output=second")
    result = simfluence(*COMMAND, *options, cwd=recorded)
    assert result.returncode == 0, result.stderr
    main = pd.read_csv(recorded / "second" / "main.csv", index_col="method")
    assert "made_up, calibrated" in main.index


def test_scores_are_measured_on_subsets_beside_the_set(simfluence, recorded: Path) -> None:
    """Retrained losses that are the scores' own sums, negated, are ordered perfectly."""
    folder = recorded / "runs" / "small"
    scores = InfluenceScores.load(folder / "scores.safetensors").scores
    kept = random_subsets(len(scores), 0.5, 12)
    bank = SubsetBank.empty(kept, (0,), scores.shape[1], task="made up", optimizer="sgd", model="none")
    bank.losses[:, 0] = -(kept @ scores)
    bank.save(folder / "subsets-50.parquet")
    result = simfluence(*COMMAND, "methods=[linear]", "output=lds", cwd=recorded)
    (folder / "subsets-50.parquet").unlink()
    assert result.returncode == 0, result.stderr
    assert re.search(r"made_up \(scores.safetensors\) +\| 1\.00 ", result.stdout)
    assert "12 subsets of 50%, 1 seed each, sgd" in result.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("methods=[liner]",),
            "'liner' is no simulator, no attribution method and no file of scores; did you",
        ),
        (("methods=[linear]", "against=auto"), "against=auto is not among the simulators of methods"),
        (("methods=[linear,ekfac]",), "was not recorded by `simfluence record`: its model is not known"),
        (("methods=[linear]", "train=99", "test=10"), "leave none to fit to"),
        (("methods=[linear]", "subsets=-1"), "subsets must be at least 0, got -1"),
        (("methods=[linear]", "subsets=3"), "was not recorded by `simfluence record`"),
    ],
)
def test_what_is_wrong_is_said(simfluence, recorded: Path, options: tuple[str, ...], said: str) -> None:
    result = simfluence(*COMMAND, *options, "output=third", cwd=recorded)
    assert result.returncode == 2
    assert said in result.stderr
