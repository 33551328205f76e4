"""Runs with everything that the page's equations depend on, and node to run its JavaScript."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from families import ADAM

from simfluence import RunSet
from simfluence.curriculum import Curriculum
from simfluence.explore.inline import script
from simfluence.runs import ExampleTable

TRAIN, TESTS, WIDTH, STEPS = 24, 6, 5, 36
GROUPS = ["red", "green", "blue & <b>", ""]


def logistic_runs(runs: int = 10) -> RunSet:
    """A logistic regression's losses, trained on batches of several sizes, for several numbers of steps, at
    learning rates that rise and fall; evaluated after most steps only.
    """
    rng = np.random.default_rng(3)
    common = 0.5 * rng.normal(size=WIDTH)
    train, test = (rng.normal(size=(n, WIDTH)) + common for n in (TRAIN, TESTS))
    curricula, losses = [], []
    rates = 0.4 * np.minimum(np.arange(1, STEPS + 1) / 5, np.linspace(1.2, 0.1, STEPS))
    for run in range(runs):
        steps = STEPS - run % 3
        batches = [rng.choice(TRAIN, 2 + (step % 4 == 1), replace=False) for step in range(steps)]
        weights, of_run = 0.3 * rng.normal(size=WIDTH), []
        for step in range(steps + 1):
            of_run.append(np.logaddexp(0, -test @ weights))
            if step < steps:
                residual = 1 / (1 + np.exp(train[batches[step]] @ weights))
                weights = weights + rates[step] * residual @ train[batches[step]] / len(batches[step])
        values = np.array(of_run)
        values[3:-1:4] = np.nan
        curricula.append(Curriculum.from_batches(batches, TRAIN))
        losses.append(values)
    tables = [
        ExampleTable(
            pd.DataFrame(
                {"id": [f"{what}-{i}" for i in range(n)], "group": [GROUPS[i % of] for i in range(n)]}
            )
        )
        for what, n, of in (("q", TRAIN, 4), ("t", TESTS, 2))
    ]
    made = RunSet.from_arrays(
        curricula, losses, train=tables[0], test=tables[1], optimizer=ADAM, allow_nonfinite=True
    )
    logged = [
        dataclasses.replace(run, learning_rate=rates[: len(run)], config={"warmup_steps": 4}) for run in made
    ]
    return RunSet(logged, made.train, made.test)


@pytest.fixture(scope="session")
def logistic() -> RunSet:
    return logistic_runs()


@pytest.fixture(scope="session")
def javascript() -> Callable[..., Any]:
    """Runs a function body of the page's script in node: its arguments and its result are JSON."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, which runs the page's JavaScript outside of a browser")

    def call(body: str, folder: Path, **arguments: Any) -> Any:
        names = ", ".join(arguments)
        code = f"\nconsole.log(JSON.stringify((({{{names}}}) => {{ {body} }})(JSON.parse(TEXT))));\n"
        (folder / "arguments.json").write_text(json.dumps(arguments))
        read = "const TEXT = require('fs').readFileSync('arguments.json', 'utf8');\n"
        (folder / "page.js").write_text(read + script() + code)
        done = subprocess.run([node, "page.js"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call
