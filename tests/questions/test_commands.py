"""The questions on the command line: the numbers of Python, files, and what is wrong in a sentence."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families import replaced

from simfluence import AutoSimulator, Curriculum, RunSet, fit
from simfluence.fitted import Fitted
from simfluence.questions.groups import group_matrix
from simfluence.questions.interactions import interactions
from simfluence.questions.rank import rank
from simfluence.questions.when import when
from simfluence.simulators import make_simulator

RECORDED = Path(__file__).parents[2] / "runs" / "openbookqa-minilm"
COMMANDS = {"rank": rank, "groups": group_matrix, "interactions": interactions, "when": when}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ten recorded runs in runs/small, and a simulator fitted to eight in small.safetensors."""
    folder = tmp_path_factory.mktemp("asked")
    runs = RunSet.load(RECORDED)[list(range(10))]
    runs.save(folder / "runs" / "small")
    fit(runs, make_simulator("additive"), train=8, validation=0).save(folder / "small.safetensors")
    empty = replaced(runs, curriculum=Curriculum(np.repeat(3, 384), np.arange(0, 388, 4)[:97], 200))
    empty.save(folder / "runs" / "one")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_answers_are_those_of_python(simfluence, folder, command):
    asked = ("path=runs/small", "simulator=small.safetensors", "output=out")
    result = simfluence(command, *asked, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "note: the simulator additive was fitted to run-000" in result.stdout
    runs, fitted = RunSet.load(folder / "runs" / "small"), Fitted.load(folder / "small.safetensors")
    expected = COMMANDS[command](fitted, runs[-1], train=runs.train, test=runs.test)
    written = pd.read_csv(folder / "out" / f"{command}.csv")
    pd.testing.assert_frame_equal(written, expected, check_dtype=False)
    for ending in ("md", "tex", "png", "pdf"):
        assert (folder / "out" / f"{command}.{ending}").stat().st_size > 100


def test_rank_prints_the_ends_and_texts(simfluence, tmp_path):
    runs = RunSet.load(RECORDED)[list(range(6))]
    runs.train.frame["text"] = [f"a text of {name}" for name in runs.train.ids]
    runs.save(tmp_path / "texts")
    options = (
        "path=texts",
        "simulator=additive",
        "train=5",
        "validation=0",
        "level=null",
        "of=which",
        "top=2",
    )
    result = simfluence("rank", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "a text of openbookqa-" in line]
    assert len(lines) == 4
    assert "never used 72 of the 200 training examples" in result.stdout
    assert "verdict" not in result.stdout
    alone = simfluence(
        "rank", *options[:-2], f"of={runs.test.ids[0]}", "per=group", "what=add_one", cwd=tmp_path
    )
    assert f"change of the mean final loss of {runs.test.ids[0]}" in alone.stdout


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        *((command, ["path=nowhere"], "there is no run set nowhere here") for command in COMMANDS),
        *((command, ["run_id=nine"], "there are run-000") for command in COMMANDS),
        *((command, ["of=nobody"], "named 'nobody'") for command in COMMANDS),
        *((command, ["fitted=no.safetensors"], "there is no file no.safetensors") for command in COMMANDS),
        *((command, ["output=small.safetensors"], "cannot be a folder") for command in COMMANDS),
        ("rank", ["per=word"], "per must be 'example' or 'group', got 'word'"),
        ("rank", ["what=drop"], "what must be 'leave_out' or 'add_one', got 'drop'"),
        ("rank", ["first_order=maybe"], "first_order must be true or false"),
        ("rank", ["first_order=true", "simulator=mean_trajectory", "train=5"], "has no first-order changes"),
        *((command, ["top=0"], "top must be at least 1") for command in COMMANDS),
        ("rank", ["path=runs/one"], "used one training example"),
        ("interactions", ["per=example"], "name the examples"),
        ("interactions", ["among=[nobody,which]"], "no example is in group 'nobody'"),
        ("interactions", ["per=example", "among=[openbookqa-1]"], "'openbookqa-1' is not in the table"),
        ("interactions", ["path=runs/one"], "a pair takes two training groups"),
        ("interactions", ["share=much"], "share must be a number"),
        ("when", ["groups=[nobody]"], "no example is in group 'nobody'"),
        ("when", ["path=runs/one"], "used one group alone"),
        (
            "when",
            ["simulator=s.safetensors", "simulator.max_rows=9"],
            "it does not take simulator.max_rows=9",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(simfluence, folder, command, options, message):
    path = [] if options[0].startswith("path=") else ["path=runs/small"]
    result = simfluence(command, *path, *options, cwd=folder)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_runs_on_mixtures(simfluence, tmp_path):
    """Groups are left out and doubled; single uses, and places of uses, there are none."""
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    proportions = pd.DataFrame(shares, columns=["web", "code", "maths"]).assign(run=range(12))
    losses = pd.DataFrame({"run": range(12), "python": 2 - np.sqrt(shares[:, 1])})
    RunSet.from_mixtures(proportions, losses, initial_loss=5.0).save(tmp_path / "mixed")
    runs = RunSet.load(tmp_path / "mixed")
    fit(runs, AutoSimulator(), train=10, validation=0).save(tmp_path / "auto.safetensors")
    asked = ("path=mixed", "simulator=auto.safetensors")
    for command in ("rank", "groups", "interactions"):
        result = simfluence(command, *asked, f"output={command}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "code" in result.stdout
    frame = pd.read_csv(tmp_path / "rank" / "rank.csv")
    assert frame["id"].iloc[0] == "code"  # without it the loss rises most
    by_group = simfluence("rank", *asked, "per=group", cwd=tmp_path)
    assert by_group.returncode == 0, by_group.stderr
    for command, options in (("when", []), ("rank", ["what=add_one"])):
        result = simfluence(command, *asked, *options, cwd=tmp_path)
        assert result.returncode == 2
        assert "needs counted examples" in result.stderr
