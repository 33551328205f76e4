"""A plain PyTorch loop: what is recorded, and that the training does not notice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny import TEST, TRAIN, Training, bits, new_model, per_example
from torch import nn

from simfluence.errors import RecordingError, RunDataError, RunExistsError
from simfluence.recording import NonFiniteLossWarning, RunRecorder, load_weights, weight_steps
from simfluence.runs import RunSet, storage


@pytest.fixture
def recorder(tmp_path):
    return RunRecorder(tmp_path / "set", train=TRAIN, test=TEST, batch_size=4)


def record(recorder, run_id="seed-0", steps=5, training=None, **options):
    training = training or Training(steps=steps)
    with recorder.run(
        run_id, model=training.model, loss=per_example, optimizer=training.optimizer, **options
    ) as run:
        for _ in range(steps):
            ids, loss = training.step()
            run.step(example_ids=ids, train_loss=loss)
    return training


def test_training_with_and_without_the_recorder_gives_the_same_bits(recorder):
    def noisy_loss(model, batch):
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        assert not model.training
        assert not torch.is_grad_enabled()
        return per_example(model, batch)

    bare = Training(steps=10)
    for _ in range(10):
        bare.step()
    after_bare = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    recorded = Training(steps=10)
    with recorder.run("seed-0", model=recorded.model, loss=noisy_loss, keep_weights="every") as run:
        for _ in range(10):
            ids, loss = recorded.step()
            run.step(ids, train_loss=loss)
    after_recorded = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    assert bits(recorded.model) == bits(bare.model)
    assert after_recorded == after_bare


def test_what_is_recorded_is_what_a_naive_loop_sees(recorder):
    expected, seen = [], []
    naive = Training(steps=5)

    def evaluate():
        modes = naive.model.training
        naive.model.eval()
        with torch.no_grad():
            expected.append([per_example(naive.model, [example]).item() for example in TEST])
        naive.model.train(modes)

    evaluate()
    for _ in range(5):
        seen.append(naive.step())
        evaluate()
    training = Training(steps=5)
    record(recorder, training=training, config={"task": "tiny"}, seed=7)
    run = RunSet.load(recorder.path)[0]
    np.testing.assert_allclose(run.loss, expected, rtol=1e-5)
    assert [[f"train-{i}" for i in batch] for batch in run.curriculum] == [ids for ids, _ in seen]
    assert run.train_loss.tolist() == [loss for _, loss in seen]
    np.testing.assert_allclose(run.learning_rate, 0.05 * (1 - 0.9 * np.arange(5) / 5), rtol=1e-9)
    assert (run.seed, run.config) == (7, {"task": "tiny"})
    assert run.optimizer["class"] == "AdamW"
    assert run.optimizer["betas"] == [0.9, 0.999]
    assert run.optimizer["weight_decay"] == 0.01


def test_micro_batches_of_a_step_are_one_batch(recorder):
    model = new_model()
    with recorder.run("accumulated", model=model, loss=per_example) as run:
        run.consumes(["train-0", "train-1"])
        run.consumes(["train-2"])
        run.step(train_loss=torch.tensor(0.5, requires_grad=True), learning_rate=0.1)
        run.consumes(["train-3"])
        run.step(["train-4"])
    curriculum = RunSet.load(recorder.path)[0].curriculum
    assert [batch.tolist() for batch in curriculum] == [[0, 1, 2], [3, 4]]


def test_metrics_beside_the_loss_and_cadences(recorder):
    def loss_and_margin(model, batch):
        loss = per_example(model, batch)
        return {"loss": loss, "margin": -loss.double(), "correct": loss < 1}

    for run_id, options, evaluated in (
        ("every-2", {"evaluate_every": 2}, [0, 2, 4]),
        ("every-2-and-last", {"evaluate_every": 2, "total_steps": 5}, [0, 2, 4, 5]),
        ("given", {"evaluate_at": [1, 4]}, [0, 1, 4]),
    ):
        with recorder.run(run_id, model=new_model(), loss=loss_and_margin, **options) as run:
            for i in range(5):
                run.step([f"train-{i}"])
        loaded = next(run for run in RunSet.load(recorder.path) if run.id == run_id)
        assert loaded.evaluated.tolist() == evaluated
        assert {name: values.dtype for name, values in loaded.metrics.items()} == {
            "loss": np.float32,
            "margin": np.float64,
            "correct": np.float32,
        }
        np.testing.assert_array_equal(loaded.metrics["margin"], -loaded.loss.astype(np.float64))


@pytest.mark.parametrize(
    "options",
    [
        {"evaluate_every": 0},
        {"evaluate_every": 2, "evaluate_at": [3]},
        {"evaluate_at": [-1]},
        {"keep_weights": 3},
        {"keep_weights": 9, "total_steps": 5},
        {"keep_weights": "all"},
        {"resume_every": 0},
        {"resume_every": 2},
        {"resume_every": 2, "state": {"model": 3}},
        {"resume": True, "restart": True},
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(recorder, options):
    with pytest.raises(ValueError, match=r"."):
        recorder.run("seed-0", model=new_model(), loss=per_example, **options)
    assert recorder.status("seed-0") is None


@pytest.mark.parametrize(
    ("old", "new"), [("checkpoints", "keep_weights"), ("checkpoint_every", "resume_every")]
)
def test_old_names_of_options_are_answered_with_the_new_ones(recorder, old, new):
    with pytest.raises(TypeError, match=f"'{old}' is now named '{new}'"):
        recorder.run("seed-0", model=new_model(), loss=per_example, **{old: 1})
    assert recorder.status("seed-0") is None


@pytest.mark.parametrize(
    ("which", "steps"), [("every", [0, 1, 2, 3, 4, 5]), (2, [2, 5]), ([0, 3], [0, 3]), (None, [])]
)
def test_weights_for_attribution(recorder, which, steps):
    trained = record(recorder, keep_weights=which, total_steps=5)
    folder = recorder.path / "seed-0"
    assert weight_steps(folder) == steps
    manifest = storage.read_manifest(folder)
    assert len(manifest["checkpoints"]) == len(steps)
    if 5 in steps:
        fresh = new_model(seed=9)
        load_weights(folder, 5, fresh)
        assert bits(fresh) == bits(trained.model)
        with pytest.raises(RunDataError, match="after steps"):
            load_weights(folder, 77, fresh)
        with pytest.raises(RunDataError, match="has shape"):
            load_weights(folder, 5, nn.Sequential(nn.Linear(2, 2)))


def test_only_what_trains_is_kept_where_most_is_frozen_and_tied_weights_once(recorder):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(5, 100, bias=False)
            self.out = nn.Linear(5, 100, bias=False)
            self.out.weight = self.embed.weight
            self.head = nn.Linear(100, 3)

        def forward(self, x):
            return self.head(self.embed(x) + self.out(x))

    torch.manual_seed(0)
    model = Tied()
    for frozen in (False, True):
        model.embed.weight.requires_grad_(not frozen)
        run_id = f"frozen-{frozen}"
        with recorder.run(run_id, model=model, loss=per_example, keep_weights=[0]) as run:
            run.step(["train-0"])
        file = recorder.path / run_id / "checkpoints" / "step-000000.safetensors"
        kept = 4 * (303 + (0 if frozen else 500))
        assert kept <= file.stat().st_size < kept + 600
        other = Tied()
        load_weights(recorder.path / run_id, 0, other)
        assert torch.equal(other.head.weight, model.head.weight)
        assert torch.equal(other.out.weight, model.out.weight) is not frozen
        assert other.out.weight is other.embed.weight


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["train-0", "nobody"], "step 3: example id 'nobody' is not in the table of 24"),
        ([], "step 3: it has no example ids"),
        (None, "step 3: it has no example ids"),
        ("train-1", "a list of example ids, got the string"),
    ],
)
def test_bad_ids_lose_nothing(recorder, ids, message):
    with (
        pytest.raises(RunDataError, match=message),
        recorder.run("seed-0", model=new_model(), loss=per_example) as run,
    ):
        run.step(["train-0"])
        run.step(["train-1"])
        run.step(ids)
    assert recorder.status("seed-0") == "failed"
    runs = RunSet.load(recorder.path, incomplete=True)
    assert len(runs[0]) == 2
    assert "RunDataError" in storage.read_manifest(recorder.path / "seed-0")["error"]


def test_after_bad_ids_that_are_caught_recording_goes_on(recorder):
    with recorder.run("seed-0", model=new_model(), loss=per_example) as run:
        run.consumes(["train-5"])
        with pytest.raises(RunDataError):
            run.step(["nobody"])
        run.step(["train-1"])
    assert [batch.tolist() for batch in RunSet.load(recorder.path)[0].curriculum] == [[1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_recorded_and_said_once(tmp_path, bad):
    steps = iter(range(100))

    def loss(model, batch):
        values = per_example(model, batch)
        return torch.where(
            torch.tensor([e["id"] == "test-2" for e in batch]) & (next(steps) >= 2), bad, values
        )

    recorder = RunRecorder(tmp_path, TRAIN, TEST)
    with (
        pytest.warns(NonFiniteLossWarning, match=r"'test-2' is (nan|inf) after step 2 \(1 of 6") as said,
        recorder.run("seed-0", model=new_model(), loss=loss) as run,
    ):
        for _ in range(4):
            run.step(["train-0"])
    assert len(said) == 1
    assert storage.read_manifest(tmp_path / "seed-0")["nonfinite"] == {
        "step": 2,
        "test": "test-2",
        "loss": str(bad),
    }
    run = RunSet.load(tmp_path)[0]
    assert np.isfinite(run.loss[:2]).all()
    np.testing.assert_array_equal(run.loss[2:, 2], [bad] * 3)


def test_losses_that_are_not_finite_end_the_run_if_so_chosen(tmp_path):
    recorder = RunRecorder(tmp_path, TRAIN, TEST, nonfinite="raise")
    model = new_model()
    with (
        pytest.raises(FloatingPointError, match="'test-0' is nan after step 1"),
        recorder.run("seed-0", model=model, loss=per_example) as run,
    ):
        model[4].weight.data.fill_(torch.nan)
        run.step(["train-0"])
    assert recorder.status("seed-0") == "failed"
    assert len(RunSet.load(tmp_path, incomplete=True)[0]) == 1


@pytest.mark.parametrize("name", ["../seed", "a/b", "", ".hidden", "x" * 101, "a b", "run\n", "C:x"])
def test_names_that_could_not_be_a_folders_are_refused(recorder, name):
    with pytest.raises(ValueError, match="name"):
        recorder.run(name, model=new_model(), loss=per_example)


def test_a_loss_function_that_averages_is_told_so(recorder):
    with (
        pytest.raises(ValueError, match="reduction='none'"),
        recorder.run("seed-0", model=new_model(), loss=lambda m, b: per_example(m, b).mean()),
    ):
        pass
    record(recorder, restart=True)


def test_a_loss_function_that_changes_its_metrics_is_told_so(recorder):
    names = iter(["loss"] * 2 + ["loss", "extra"] * 9)

    def loss(model, batch):
        return {"loss": per_example(model, batch)} | {next(names): per_example(model, batch)}

    with (
        pytest.raises(ValueError, match=r"\['extra', 'loss'\], but at first \['loss'\]"),
        recorder.run("seed-0", model=new_model(), loss=loss) as run,
    ):
        run.step(["train-0"])
        run.step(["train-0"])


def test_other_examples_need_another_folder(recorder):
    with pytest.raises(RecordingError, match="24 other training examples"):
        RunRecorder(recorder.path, TRAIN[:-1], TEST)


def test_a_run_is_not_recorded_twice(recorder):
    record(recorder)
    before = (recorder.path / "seed-0" / "steps.parquet").read_bytes()
    for options in ({}, {"restart": True}, {"resume": True}):
        with pytest.raises(RunExistsError, match="recorded already"):
            recorder.run("seed-0", model=new_model(), loss=per_example, **options)
    assert (recorder.path / "seed-0" / "steps.parquet").read_bytes() == before


def test_an_attempt_that_was_cut_off_stays_beside_the_new_one(recorder):
    for _ in range(2):
        with (
            pytest.raises(KeyboardInterrupt),
            recorder.run("seed-0", model=new_model(), loss=per_example, restart=True) as run,
        ):
            run.step(["train-0"])
            raise KeyboardInterrupt
        assert recorder.status("seed-0") == "interrupted"
    with pytest.raises(RunExistsError, match="resume=True"):
        recorder.run("seed-0", model=new_model(), loss=per_example)
    record(recorder, restart=True)
    assert len(RunSet.load(recorder.path)) == 1
    kept = sorted(path.name for path in (recorder.path / "seed-0").glob("attempt-*/*"))
    assert kept == ["journal.arrow", "journal.arrow", "run.json", "run.json"]


# --------------------------------------------------------------------------------- other processes

_CHILD = """
import os, sys, time
from simfluence.recording import RunRecorder
from tiny import TEST, TRAIN, new_model, per_example
recorder = RunRecorder(sys.argv[1], TRAIN, TEST)
with recorder.run("seed-0", model=new_model(), loss=per_example) as run:
    for i in range(3):
        run.step([f"train-{i}"])
    if os.fork() == 0:  # such as a data loader's worker
        time.sleep(20)
        os._exit(0)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_two_processes_and_a_killed_one(recorder):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(recorder.path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        assert recorder.status("seed-0") == "running"
        for options in ({}, {"restart": True}, {"resume": True}):
            with pytest.raises(RunExistsError, match="by another process"):
                recorder.run("seed-0", model=new_model(), loss=per_example, **options)
        child.kill()
        child.wait()
        deadline = time.monotonic() + 5
        while recorder.status("seed-0") == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert recorder.status("seed-0") == "interrupted"
        run = RunSet.load(recorder.path, incomplete=True)[0]
        assert (len(run), run.status) == (3, "interrupted")
        record(recorder, restart=True)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()


def test_two_writers_in_one_process(recorder):
    with recorder.run("seed-0", model=new_model(), loss=per_example) as run:
        with pytest.raises(RunExistsError):
            recorder.run("seed-0", model=new_model(), loss=per_example)
        run.step(["train-0"])
