"""The command line, as a user types it: on synthetic run sets and on the recordings that come along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from families import synthetic_runs

from simfluence import load_simulator
from simfluence.cli import COMMANDS, main

RECORDED = Path(__file__).parents[1] / "runs" / "openbookqa-minilm"


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def simfluence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line in this process (a process of its own takes seconds to import torch)."""

    def call(*arguments: str, cwd: Path) -> Result:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["simfluence"])
        try:
            main(list(arguments))
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which runs/small holds ten synthetic runs."""
    folder = tmp_path_factory.mktemp("project")
    synthetic_runs(n_runs=10, noise=0.01)[0].save(folder / "runs" / "small")
    return folder


def test_it_is_a_program() -> None:
    command = [sys.executable, "-m", "simfluence.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "usage: simfluence COMMAND" in result.stdout


def test_help_tells_a_newcomer_what_to_type(simfluence, tmp_path: Path) -> None:
    top = simfluence("--help", cwd=tmp_path)
    assert top.returncode == 0
    assert all(command in top.stdout for command in COMMANDS)
    record = simfluence("record", "--help", cwd=tmp_path)
    assert "task=  " in record.stdout
    assert "openbookqa" in record.stdout
    assert "optimizer:" in record.stdout
    assert "simfluence record task=" in record.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recrod"], "did you mean 'record'"),
        (["record", "task=copaa"], "task is one of boolq"),
        (["record", "run.optimizer.lrate=1"], "did you mean 'run.optimizer.lr'"),
        (["evaluate", "pth=x"], "did you mean 'path'"),
        (["evaluate", "path=nowhere"], "not a run set"),
        (["evaluate", "path=runs/small", "train=5", "only=[linaer]"], "among the simulators persistence"),
        (["evaluate", "path=runs/small", "train=40"], "cannot split 10 runs"),
        (
            ["fit", "path=runs/small", "train=5", "simulator=linear", "simulator.center=middle"],
            "center must be one of",
        ),
        (["fit", "path=runs/small", "train=5", "+simulator.foo=1"], "has no hyperparameter 'foo'; it has"),
        (["whatif", "path=runs/small", "train=5", "edit.groups=[x]"], "the groups are"),
        (["whatif", "path=runs/small", "train=5", "edit.ids=[3]", "verify=true"], "retrain it yourself"),
        (["runs", "path=runs/small", "run_id=nine"], "there are run-000"),
        (["runs", "path=nowhere"], "holds none"),
        (["record", "run.checkpoints=10"], "'run.checkpoints' is now named 'run.keep_weights'"),
        (["record", "+run.checkpoints=10"], "'run.checkpoints' is now named 'run.keep_weights'"),
        (
            ["record", "-m", "run.checkpoint_every=1,2"],
            "'run.checkpoint_every' is now named 'run.resume_every'",
        ),
        (["runs", "path=runs/small", "prune=[checkpoints]"], "'checkpoints' is now named 'weights'"),
    ],
)
def test_what_is_wrong_is_reported_in_a_sentence(
    simfluence, arguments: list[str], message: str, recorded: Path
) -> None:
    result = simfluence(*arguments, cwd=recorded)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_experiment_decides_where_its_runs_go(simfluence, tmp_path: Path) -> None:
    assert "path: demo/runs" in simfluence("record", "--help", "experiment=demo", cwd=tmp_path).stdout
    assert "path: runs/${task.source}" in simfluence("record", "--help", cwd=tmp_path).stdout


def test_runs_are_listed_and_shown(simfluence, recorded: Path) -> None:
    listed = simfluence("runs", "path=runs/small", cwd=recorded).stdout
    assert listed.count("complete") == 10
    shown = simfluence("runs", "path=runs/small", "run_id=run-003", "plot=curve.png", cwd=recorded)
    assert "30 steps" in shown.stdout
    assert (recorded / "curve.png").stat().st_size > 1000


def test_run_sets_are_verified_and_pruned(simfluence, tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthetic_runs(n_runs=2)[0].save(tmp_path / "runs" / name)
    assert simfluence("runs", cwd=tmp_path).stdout.count("runs/") == 2
    assert "is what its manifest says" in simfluence("runs", "verify=true", cwd=tmp_path).stdout
    steps = tmp_path / "runs" / "a" / "run-001" / "steps.parquet"
    steps.write_bytes(steps.read_bytes()[:-1])
    problems = simfluence("runs", "verify=true", cwd=tmp_path)
    assert problems.returncode == 2
    assert "torn" in problems.stdout
    assert "nothing to prune" in simfluence("runs", "prune=[attempts]", cwd=tmp_path).stdout
    assert "prune takes" in simfluence("runs", "prune=[everything]", cwd=tmp_path).stderr


def test_fit_saves_a_simulator(simfluence, recorded: Path) -> None:
    result = simfluence(
        "fit",
        "path=runs/small",
        "train=6",
        "simulator=linear",
        "simulator.penalty=0.1",
        "output=s.safetensors",
        cwd=recorded,
    )
    assert result.returncode == 0, result.stderr
    assert load_simulator(recorded / "s.safetensors").get_params()["penalty"] == 0.1


def test_evaluate_writes_table_and_figures(simfluence, recorded: Path) -> None:
    result = simfluence("evaluate", "path=runs/small", "train=6", "output=report", cwd=recorded)
    assert result.returncode == 0, result.stderr
    assert "| linear " in result.stdout
    assert "| mean_trajectory " in result.stdout
    written = {file.name for file in (recorded / "report").iterdir()}
    assert written >= {"table.md", "table.csv", "scores.csv", "loss_curves.png", "error_by_step.png"}


def test_whatif_on_real_recordings(simfluence, tmp_path: Path) -> None:
    result = simfluence(
        "whatif", f"path={RECORDED}", "simulator=linear", "simulator.penalty=0.01", "edit.name=repeat",
        "edit.groups=[which]", "edit.times=3", f"output={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "all" in result.stdout
    assert (tmp_path / "what_if.csv").read_text().count("\n") == 41


def test_a_what_if_from_one_run_and_scores(simfluence, tmp_path: Path) -> None:
    """The change that twenty runs predict, and retraining confirms: the which questions lose most."""
    import pandas as pd

    from simfluence import RunSet

    RunSet.load(RECORDED)[:1].save(tmp_path / "one")
    result = simfluence(
        "whatif", f"path={tmp_path}/one", f"simulator.scores={RECORDED}/scores_adam.safetensors",
        "edit.groups=[which,what]", f"output={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "1 runs, fewer than train + validation = 22: fitted to all" in result.stdout
    assert "no bands, which take 3 training runs" in result.stdout
    changes = pd.read_csv(tmp_path / "what_if.csv")
    change = changes.groupby("group")["change"].mean()
    assert change["which"] > 0.04
    assert change["what"] < 0


def test_evaluate_works_on_the_recordings_at_once(simfluence, tmp_path: Path) -> None:
    result = simfluence("evaluate", f"path={RECORDED}", "only=[persistence,additive]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "20 training, 2 validation, 10 test runs" in result.stdout


def test_scores_are_held_to_the_same_standard(simfluence, recorded: Path) -> None:
    import numpy as np

    from simfluence.attribution import InfluenceScores

    scores = np.random.default_rng(0).normal(size=(12, 4))
    InfluenceScores(scores, "with_units", weighing="use").save(recorded / "one.safetensors")
    InfluenceScores(scores, "without").save(recorded / "two.safetensors")
    split = ("path=runs/small", "train=6", "validation=0")
    table = simfluence(
        "evaluate", *split, "only=[persistence]", "scores=[one.safetensors,two.safetensors]", cwd=recorded
    )
    assert table.returncode == 0, table.stderr
    rows = [line.split("|")[1].strip() for line in table.stdout.splitlines() if line.startswith("| ")]
    named = [f"with_units, {how}" for how in ("calibrated", "as is", "dynamics")]
    named += [f"without, {how}" for how in ("calibrated", "dynamics")]
    assert rows[1:] == ["persistence", *named, "mean_trajectory"]
    fitted = simfluence("fit", *split, "simulator=scores", "simulator.scores=one.safetensors", cwd=recorded)
    assert fitted.returncode == 0, fitted.stderr
    missing = simfluence("evaluate", *split, "scores=[three.safetensors]", cwd=recorded)
    assert missing.returncode == 2
    assert "three.safetensors" in missing.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["record", "count=1", "device=nope"],
        ["attribute", "steps=initial", "output=out", "device=nope"],
        ["fit", "simulator=linear", "output=out", "simulator.device=nope"],
    ],
    ids=lambda command: command[0],
)
def test_a_device_that_is_not_here_is_named(simfluence, tmp_path, command) -> None:
    result = simfluence(*command, f"path={RECORDED}", cwd=tmp_path)
    assert result.returncode != 0
    assert "be there; got 'nope'" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
