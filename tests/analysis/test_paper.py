"""The benchmark's committed figures are what its committed recordings give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simfluence import RunSet
from simfluence.evaluation import benchmark, get_results, simulator_methods, summary

RUNS = Path(__file__).parents[2] / "runs" / "paper"
SETS = sorted(get_results()["set"].unique())


@pytest.mark.parametrize("name", SETS)
def test_figures_are_those_of_the_recordings(name: str) -> None:
    methods = simulator_methods({one: {"name": one} for one in ("additive", "linear")})
    found = benchmark(RunSet.load(RUNS / name), methods, progress=False)
    mine = summary(found.of_runs).set_index(["method", "metric"])[["mean", "spread"]]
    theirs = get_results(name).set_index(["method", "metric"])[["mean", "spread"]]
    np.testing.assert_allclose(mine, theirs.loc[mine.index], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_no_text_and_no_path_is_committed(name: str) -> None:
    runs = RunSet.load(RUNS / name)
    assert (runs.train.frame["text"].fillna("") == "").all()
    assert all(not str(run.config["task"]["path"]).startswith("/") for run in runs)
