"""The run set that travels with the package, in a checkout and in an installed wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from simfluence import RunSet
from simfluence.runs import example

ROOT = Path(__file__).parents[2]


def test_in_a_checkout_it_is_the_repositorys() -> None:
    here = RunSet.load(ROOT / "runs" / "openbookqa-minilm")
    assert [run.fingerprint for run in RunSet.example()] == [run.fingerprint for run in here]


def test_it_holds_no_texts() -> None:
    assert set(pd.read_parquet(example.folder() / "examples.parquet")["text"]) == {""}


def test_a_run_set_of_ones_own_may_be_called_example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: RunSet
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example").mkdir()  # what a command wrote there
    assert example.resolved("example") == example.folder()
    assert example.resolved("elsewhere") == Path("elsewhere")
    runs.save("example")
    assert example.resolved("example") == Path("example")


def test_an_answer_beside_it_goes_where_the_command_was_called(simfluence, tmp_path: Path) -> None:
    result = simfluence("benchmark", "path=example", "methods=[additive]", "scores=false", "sizes=[2]",
                        "every=[32]", "against=additive", "train=2", "validation=0", "test=3", "processes=1",
                        cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "example" / "benchmark" / "main.md").is_file()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel, built from a copy of what is committed, was installed into."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    made = subprocess.run([*pip, "--target", folder, ROOT], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(
            f"no wheel can be built here: {made.stderr.splitlines()[-1:]}"
        )  # hatchling is not at hand
    return folder


def called(installed: Path, folder: Path, script: str) -> str:
    """What a script prints, in a process of its own that imports the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


SEVERAL_COMMANDS = """
import contextlib, io, sys
from simfluence.cli import main

def call(*arguments):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        sys.argv = ["simfluence"]
        main(list(arguments))
    print(said.getvalue())
    return said.getvalue()

quick = ("edit.groups=[which]", "simulator=additive", "simulator.penalty=0.01")
assert "verdict: " in call("whatif", "path=example", *quick, "output=report")
assert "| additive " in call("evaluate", "path=example", "only=[additive]")
for refused in (
    ["whatif", "edit.groups=[which]", "verify=true"],
    ["benchmark", "methods=[ekfac]", "against=persistence"],
    ["benchmark", "subsets=4"],
    ["runs", "prune=[weights]", "delete=true"],
):
    assert "is only read: copy the folder" in call(refused[0], "path=example", *refused[1:])
assert "no run set runs/openbookqa-minilm here: path=example" in call("whatif", "edit.groups=[which]")
"""


def test_a_wheel_answers_questions_without_the_repository(installed: Path, tmp_path: Path) -> None:
    printed = called(installed, tmp_path, SEVERAL_COMMANDS)
    assert (tmp_path / "report" / "what_if.csv").is_file()
    assert f"{installed}/simfluence/example_runs/openbookqa-minilm: 20 training" in printed
    assert f"{ROOT}/" not in printed


def test_a_wheel_carries_the_recordings_and_nothing_else(installed: Path) -> None:
    """Whatever commands wrote beside the run set in the checkout, texts among it."""
    files = [file for file in (installed / "simfluence" / "example_runs").rglob("*") if file.is_file()]
    names = {"examples.parquet", "run.json", "steps.parquet", "scores.safetensors", "scores_adam.safetensors"}
    assert {file.name for file in files} == names
    assert len(files) == 2 * 32 + 3
    assert sum(file.stat().st_size for file in files) < 3e6


def test_the_readmes_ten_lines_run_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    lines = block[1].replace('RunSet.load("runs/openbookqa-minilm")', "RunSet.example()")
    lines = lines.replace("AutoSimulator", "AdditiveSimulator")  # whose loops are not compiled for a minute
    assert "verdict: " in called(installed, tmp_path, lines)
