"""The command line, as a user types it: on synthetic run sets and on the recordings that come along."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families import synthetic_runs
from omegaconf import OmegaConf

from simfluence import ExampleTable, RunSet, __version__, load_simulator
from simfluence.commands import COMMANDS
from simfluence.edit import Edit
from simfluence.options import compose, leaves, options_of
from simfluence.simulators import AdditiveSimulator
from simfluence.whatif import ask

RECORDED = Path(__file__).parents[1] / "runs" / "openbookqa-minilm"


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
        (["evaluate", "path=nowhere"], "no run set nowhere here: path=example takes the set that travels"),
        (["evaluate", "path=runs"], "not a run set"),
        (["whatif"], "there is no run set runs/openbookqa-minilm here: path=example"),
        (["record", "path=example"], "record into another folder"),
        (["evaluate", "path=runs/small", "train=5", "only=[linaer]"], "among the simulators persistence"),
        (["evaluate", "path=runs/small", "train=5", "test=10"], "leave none to fit to"),
        (
            ["fit", "path=runs/small", "train=5", "simulator=linear", "simulator.center=middle"],
            "center must be one of",
        ),
        (["fit", "path=runs/small", "train=5", "+simulator.foo=1"], "has no hyperparameter 'foo'; it has"),
        (["whatif", "path=runs/small", "train=5", "edit.groups=[x]"], "the groups are"),
        (["whatif", "path=runs/small", "train=5", "edit.ids=[3]", "verify=true"], "retrain it yourself"),
        (["runs", "path=runs/small", "run_id=nine"], "there are run-000"),
        (["runs", "path=nowhere"], "no run set nowhere here: path=example"),
        (["runs", "path=runs/small/run-000"], "holds none"),
        (["record", "run.checkpoints=10"], "'run.checkpoints' is now named 'run.keep_weights'"),
        (["record", "+run.checkpoints=10"], "'run.checkpoints' is now named 'run.keep_weights'"),
        (
            ["record", "-m", "run.checkpoint_every=1,2"],
            "'run.checkpoint_every' is now named 'run.resume_every'",
        ),
        (["runs", "path=runs/small", "prune=[checkpoints]"], "'checkpoints' is now named 'weights'"),
        (["runs", "path=runs/small", "prune=checkpoint"], "attempts, failed, weights, not checkpoint"),
        (["runs", "path=runs/small", "plot=a.png"], "plot goes with run_id="),
        (["runs", "path=runs/small", "run_id=run-001", "verify=true"], "only one of run_id, verify"),
        (["--hlep"], "no flag '--hlep'; did you mean '--help'?"),
        (["fit", "--hlep"], "no flag '--hlep'; did you mean '--help'?"),
        (["fit", "linear"], "'linear' is not of the form option=value"),
        (["fit", "simulator=linaer"], "did you mean 'linear'?"),
        (["fit", "--help", "simulator=linaer"], "did you mean 'linear'?"),
        (["fit", "train=5,6"], "write a list as train=[a,b]"),
        (["fit", "output=[a"], "'output=[a' cannot be read"),
        (["fit", "penalty=1", "simulator=linear"], "did you mean 'simulator.penalty'?"),
        (["fit", "~path"], "fit needs the option path"),
        (["fit", "simulator=s.safetensors"], "is fitted already: whatif, explore and evaluate take it"),
        (["evaluate", "path=runs/small", "simulator=linear"], "only=[linear,auto] chooses among them"),
        (["evaluate", "path=runs/small", "simulator=s.safetensors"], "there is no file s.safetensors"),
        (["evaluate", "path=runs/small", "scores=s.safetensors"], "there is no file s.safetensors"),
        (
            ["whatif", "simulator=s.safetensors", "simulator.max_rows=9"],
            "it does not take simulator.max_rows=9",
        ),
        (["whatif", "path=runs/small", "edit=3"], "edit is not one option but several: edit.name, "),
        (["whatif", "path=runs/small", "edit.ids=3", "edit.times=3"], "'remove' takes no times"),
        (["record", "-m", "nubmer=0,1"], "did you mean 'number'?"),
        (["record", "task=jsonl"], "task.path has no value"),
        (
            ["record", "run.optimizer.name=sgd"],
            "SGD has no option 'betas'; ~run.optimizer.betas leaves it out",
        ),
        (["record", "count=0"], "count must be at least 1, got 0"),
        (["record", "path=runs/small/examples.parquet"], "cannot be a folder"),
        (["attribute", "path=runs/small", "method=tfidf"], "keeps no texts of its examples"),
    ],
)
def test_what_is_wrong_is_reported_in_a_sentence(
    simfluence, arguments: list[str], message: str, recorded: Path
) -> None:
    result = simfluence(*arguments, cwd=recorded)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("command", "option", "expected"),
    [
        ("record", "count=2.5", "a whole number"),
        ("record", "number=one", "a whole number"),
        ("record", "run.design.epochs=1.5", "a whole number"),
        ("record", "run.optimizer.lr=fast", "a number"),
        ("record", "run.optimizer.betas=0.9", "a list of numbers"),
        ("record", "tuning.layers=1.5", "a whole number"),
        ("record", "task.n_train=[5]", "a whole number"),
        ("record", "mixed=maybe", "true or false"),
        ("fit", "train=2.5", "a whole number"),
        ("fit", "train=null", "a whole number"),
        ("fit", "level=high", "a number"),
        ("fit", "path=[a]", "one text"),
        ("fit", "output=", "one text"),
        ("fit", "simulator.max_rows=1.5", "a whole number"),
        ("evaluate", "seed=abc", "a whole number"),
        ("evaluate", "simulators.linear.penalty=abc", "a number"),
        ("whatif", "edit.times=1.5", "a whole number"),
        ("whatif", "edit.window=true", "a whole number"),
        ("whatif", "verify=maybe", "true or false"),
        ("attribute", "only=2.5", "a whole number"),
        ("attribute", "method.batch_size=2.5", "a whole number"),
        ("runs", "verify=maybe", "true or false"),
    ],
)
def test_a_value_of_another_type_is_refused(
    simfluence, recorded: Path, command: str, option: str, expected: str
) -> None:
    result = simfluence(command, option, cwd=recorded)
    key, value = option.split("=")
    assert result.returncode == 2
    assert result.stderr == f"simfluence: {key} must be {expected}, got {value or 'nothing'}\n"


def test_every_option_has_a_type() -> None:
    """Also those whose default is null, which stand in a table."""
    for command in COMMANDS:
        known = options_of(command)
        assert {key for key, option in known.items() if option.type is None} <= {"steps", "run.keep_weights"}
        for key, _ in leaves(OmegaConf.to_container(compose(command), resolve=False)):
            assert re.sub(r"^simulators\.[^.]+", "simulator", key) in {*known, "experiment"}, key


def test_names_are_taken_as_they_are_typed(simfluence, tmp_path: Path) -> None:
    names = ["007", "1e3", "1_000", "3.10", "true", "3", "a b"]
    frame = pd.DataFrame({"id": names, "group": names[::-1]})
    runs = synthetic_runs(n_runs=4, n_train=len(names))[0]
    RunSet(runs.runs, ExampleTable(frame), runs.test).save(tmp_path / "runs")
    linear = ("path=runs", "simulator=linear", "simulator.penalty=0.1", "level=null")
    for name in names:
        for option in (
            f"edit.ids={name}",
            f"edit.ids=[{name}]",
            f"edit.groups={name}",
            f"edit.groups=['{name}']",
        ):
            result = simfluence("whatif", *linear, option, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
            assert f"remove {name} (30 steps" in result.stdout
    result = simfluence("whatif", *linear, "edit.ids=[3,007, 1e3]", cwd=tmp_path)
    assert "remove 3 007 1e3 (30 steps" in result.stdout


def test_one_name_is_a_list_of_one(simfluence, recorded: Path) -> None:
    split = ("path=runs/small", "train=6", "validation=0")
    one, several = (
        simfluence("evaluate", *split, f"only={given}", cwd=recorded).stdout
        for given in ("persistence", "[persistence]")
    )
    assert one == several != ""
    pruned = simfluence("runs", "path=runs/small", "prune=attempts", cwd=recorded)
    assert "nothing to prune" in pruned.stdout


def test_the_version_is_told(simfluence, tmp_path: Path) -> None:
    for arguments in (["--version"], ["fit", "--version"]):
        assert simfluence(*arguments, cwd=tmp_path).stdout == f"simfluence {__version__}\n"


@pytest.mark.parametrize(
    ("command", "output", "message"),
    [
        ("fit", "output=nowhere/s.safetensors", "a folder that exists"),
        ("fit", "output=runs", "is a folder"),
        ("evaluate", "output=file/report", "cannot be a folder"),
        ("whatif", "output=file", "cannot be a folder"),
        ("attribute", "output=file", "cannot be a folder"),
        ("runs", "plot=nowhere/curve.png", "a folder that exists"),
        ("runs", "plot=curve.nope", "must end in one of .avif"),
    ],
)
def test_outputs_are_checked_before_the_work(
    simfluence, tmp_path: Path, command: str, output: str, message: str, monkeypatch
) -> None:
    synthetic_runs(n_runs=4)[0].save(tmp_path / "runs")
    (tmp_path / "file").touch()
    monkeypatch.setattr("simfluence.runs.RunSet.load", lambda path: pytest.fail("the work has begun"))
    monkeypatch.setattr("simfluence.runs.manage.show", lambda *of: pytest.fail("the work has begun"))
    options = ["run_id=run-000"] if command == "runs" else []
    result = simfluence(command, "path=runs", output, *options, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr


def test_an_edit_that_changes_nothing_says_so(simfluence, recorded: Path, tmp_path: Path) -> None:
    linear = ("path=runs/small", "simulator=linear", "simulator.penalty=0.1")
    result = simfluence("whatif", *linear, "edit.name=repeat", "edit.ids=3", "edit.times=1", cwd=recorded)
    assert result.returncode == 2
    assert "'repeat 3 times 1' changes nothing in run-009" in result.stderr
    assert result.stdout == ""


def test_what_fit_writes_is_what_whatif_and_evaluate_load(simfluence, recorded: Path) -> None:
    options = ("path=runs/small", "train=5", "validation=0")
    linear = ("simulator=linear", "simulator.penalty=0.1")
    fitted = simfluence("fit", *options, *linear, "output=five.safetensors", cwd=recorded)
    assert "simulator=five.safetensors of whatif and evaluate" in fitted.stdout
    anew = simfluence("whatif", *options, *linear, "edit.ids=3", "output=anew", cwd=recorded)
    file = "simulator=five.safetensors"
    asked = simfluence("whatif", "path=runs/small", file, "edit.ids=3", "output=asked", cwd=recorded)
    note = "note: the simulator linear was fitted to run-000, run-001, …, run-004 (5 runs)\n"
    assert note in asked.stdout
    kept = re.search(r"note: kept for the next time: .*\n", anew.stdout)[0]
    assert asked.stdout.replace(note, "") == anew.stdout.replace(kept, "").replace("anew/", "asked/")
    again = simfluence("whatif", *options, *linear, "edit.ids=3", cwd=recorded)
    assert "note: fitted before: runs/small/fitted/" in again.stdout
    assert again.stdout.split("note:")[0] == anew.stdout.split("note:")[0]
    changes = [(recorded / folder / "what_if.csv").read_text() for folder in ("anew", "asked")]
    assert changes[0] == changes[1]
    assert "high" in changes[0]
    own = simfluence("whatif", "path=runs/small", file, "edit.ids=3", "run_id=run-004", cwd=recorded)
    assert "note: it was fitted to run-004 itself" in own.stdout
    table = simfluence(
        "evaluate", *options, file, "only=linear", "simulators.linear.penalty=0.1", cwd=recorded
    )
    rows = [line.split("|")[1:] for line in table.stdout.splitlines() if line.startswith("| linear")]
    assert rows[1][0].strip() == "linear (five.safetensors)"
    assert [cell.strip() for cell in rows[0][1:]] == [cell.strip() for cell in rows[1][1:]]
    seen = simfluence("evaluate", "path=runs/small", "train=2", "validation=0", file, cwd=recorded)
    assert seen.returncode == 2
    assert "run-002 is one that it is to be tested on" in seen.stderr


def test_runs_on_mixtures(simfluence, tmp_path: Path) -> None:
    """Their simulator stands beside the baselines, answers what-ifs, and can be kept in a file."""
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    proportions = pd.DataFrame(shares, columns=["web", "code", "maths"]).assign(run=range(12))
    losses = pd.DataFrame({"run": range(12), "python": 2 - np.sqrt(shares[:, 1])})
    RunSet.from_mixtures(proportions, losses, initial_loss=5.0).save(tmp_path / "mixed")
    options = ("path=mixed", "train=9", "validation=0")
    table = simfluence("evaluate", *options, cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    assert "note: the runs consume shares of groups" in table.stdout
    named = [line.split("|")[1].strip() for line in table.stdout.splitlines() if line.startswith("|")]
    assert named[2:] == ["persistence", "mean_trajectory", "auto"]
    simfluence("fit", *options, "simulator=shares", "output=fitted.safetensors", cwd=tmp_path)
    again = simfluence("evaluate", *options, "simulator=fitted.safetensors", cwd=tmp_path)
    assert "| shares (fitted.safetensors)" in again.stdout
    simfluence("fit", *options, "output=auto.safetensors", cwd=tmp_path)
    more = ("whatif", "path=mixed", "edit.name=shares", "edit.shares=40% code, rest as before")
    for taken in ([], ["simulator=auto.safetensors"]):
        answer = simfluence(*more, *taken, cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
        assert "shares 40% code, rest as before" in answer.stdout
        change = float(answer.stdout.split("| all")[1].split("|")[4])
        assert change == pytest.approx(np.sqrt(shares[-1, 1]) - np.sqrt(0.4), abs=0.05)
    wrong = simfluence(*more[:-1], "edit.shares=40% cod, rest as before", cwd=tmp_path)
    assert "no group 'cod' (did you mean 'code'?)" in wrong.stderr
    asked = ("whatif", "path=mixed", "edit.groups=[code]")
    answer = simfluence(*asked, "simulator=fitted.safetensors", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    refused = simfluence(*asked, "simulator=linear", cwd=tmp_path)
    assert "'linear' (for shares take 'auto') needs counted examples" in refused.stderr


def test_few_runs_are_treated_alike(simfluence, recorded: Path) -> None:
    linear = ("simulator=linear", "simulator.penalty=0.1")
    said = {
        "fit": [*linear, "output=few.safetensors"],
        "whatif": [*linear, "edit.ids=3"],
        "evaluate": ["only=persistence"],
    }
    notes = {
        command: [line for line in answer.splitlines() if line.startswith("note: fewer")]
        for command, options in said.items()
        if (answer := simfluence(command, "path=runs/small", *options, cwd=recorded).stdout)
    }
    assert notes == {
        "fit": ["note: fewer runs than train + validation = 22: fitted to all"],
        "whatif": ["note: fewer runs than train + validation = 22: fitted to all but run-009"],
        "evaluate": ["note: fewer runs than train + validation + test = 23: fitted to 8, tested on 2"],
    }


def test_an_experiment_decides_where_its_runs_go(simfluence, tmp_path: Path) -> None:
    assert "path: demo/runs" in simfluence("record", "--help", "experiment=demo", cwd=tmp_path).stdout
    assert "path: runs/${task.source}" in simfluence("record", "--help", cwd=tmp_path).stdout


def test_runs_are_listed_and_shown(simfluence, recorded: Path) -> None:
    listed = simfluence("runs", "path=runs/small", cwd=recorded).stdout
    assert listed.count("complete") == 10
    assert "start alike" in listed
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
    assert "steps are beyond the longest recorded run (96 steps)" in result.stdout


def test_whatif_says_and_takes_the_schedule(simfluence, tmp_path: Path) -> None:
    """The command line and Python give the same numbers."""
    asked = (
        "whatif",
        f"path={RECORDED}",
        "simulator=additive",
        "simulator.penalty=0.01",
        "edit.groups=[which]",
    )
    changes = {}
    for schedule, words in (("stretch", "recomputed for 8"), ("keep", "the original's step by step")):
        folder = tmp_path / schedule
        result = simfluence(*asked, f"edit.schedule={schedule}", f"output={folder}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"learning rate: {words}" in result.stdout
        written = json.loads((folder / "what_if.json").read_text())
        assert written["schedule"] == schedule
        edit = Edit("remove", groups="which", schedule=schedule)
        answer = ask(RunSet.load(RECORDED), AdditiveSimulator(penalty=0.01), edit)
        changes[schedule] = [row["change"] for row in written["changes"]]
        np.testing.assert_allclose(changes[schedule], answer.changes["change"], rtol=1e-12)
        np.testing.assert_allclose(written["learning_rate"][1], answer.learning_rate[1])
    refused = simfluence(*asked, "edit.schedule=linear", cwd=tmp_path)
    assert refused.returncode == 2
    assert "schedule must be 'stretch'" in refused.stderr


def test_a_what_if_from_one_run_and_scores(simfluence, tmp_path: Path) -> None:
    """The change that twenty runs predict, and retraining confirms: the which questions lose most."""
    RunSet.load(RECORDED)[:1].save(tmp_path / "one")
    result = simfluence(
        "whatif", f"path={tmp_path}/one", f"simulator.scores={RECORDED}/scores_adam.safetensors",
        "edit.groups=[which,what]", f"output={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "fitted to run-000 itself, since the set has no other run" in result.stdout
    assert "too few recorded runs to leave one out" in result.stdout
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
