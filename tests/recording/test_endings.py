"""How a run is used and how it ends: evaluations that fail, misuse, runs that end too early."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TEST, TRAIN, Training, new_model, per_example

from simfluence.errors import RecordingError, RunDataError, RunExistsError
from simfluence.recording import IncompleteRunWarning, RunRecorder, weight_steps
from simfluence.runs import ExampleTable, RunSet, storage


@pytest.fixture
def recorder(tmp_path):
    return RunRecorder(tmp_path / "set", TRAIN, TEST)


# ---------------------------------------------------------------------------- evaluations that fail


class FailsAt:
    """A loss function whose evaluations with these numbers raise an error."""

    def __init__(self, *numbers, error=torch.OutOfMemoryError, other_metrics=False):
        self.numbers, self.error, self.other_metrics, self.calls = numbers, error, other_metrics, -1

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls not in self.numbers:
            return per_example(model, batch)
        if self.other_metrics:
            return {"loss": per_example(model, batch), "extra": per_example(model, batch)}
        raise self.error("made up")


@pytest.mark.parametrize(
    "loss",
    [FailsAt(2, 3), FailsAt(2, 3, error=KeyboardInterrupt), FailsAt(2, 3, other_metrics=True)],
    ids=["error", "interrupt", "other metrics"],
)
def test_an_evaluation_that_fails_and_is_caught_leaves_its_step_unevaluated(tmp_path, loss):
    recorder = RunRecorder(tmp_path, TRAIN, TEST, batch_size=len(TEST))
    training = Training(steps=5)
    ids = []
    with recorder.run(
        "run", model=training.model, loss=loss, optimizer=training.optimizer, keep_weights="every"
    ) as run:
        for _ in range(5):
            ids.append(training.step()[0])
            with contextlib.suppress(torch.OutOfMemoryError, KeyboardInterrupt, ValueError):
                run.step(ids[-1])
    loaded = RunSet.load(tmp_path)[0]
    assert [[f"train-{row}" for row in batch] for batch in loaded.curriculum] == ids
    assert loaded.evaluated.tolist() == [0, 1, 4, 5]
    assert weight_steps(tmp_path / "run") == [0, 1, 2, 3, 4, 5]


def test_a_first_evaluation_that_fails_is_said_in_the_manifest(recorder):
    with (
        pytest.raises(ZeroDivisionError),
        recorder.run("run", model=new_model(), loss=FailsAt(0, error=ZeroDivisionError)),
    ):
        pass
    manifest = storage.read_manifest(recorder.path / "run")
    assert (manifest["status"], manifest["error"]) == ("failed", "ZeroDivisionError: made up")
    with pytest.raises(RunDataError, match="no readable run; there are run"):
        RunSet.load(recorder.path, incomplete=True, unreadable="skip")


def test_metrics_that_only_some_examples_have(recorder):
    def loss(model, batch):
        found = {"loss": per_example(model, batch)}
        if batch[0]["id"] == "test-3":
            found["margin"] = torch.ones(len(batch))
        return found

    one_by_one = RunRecorder(recorder.path, TRAIN, TEST, batch_size=1)
    with one_by_one.run("run", model=new_model(), loss=loss) as run:
        run.step(["train-0"])
    margin = RunSet.load(recorder.path)[0].metrics["margin"]
    np.testing.assert_array_equal(margin, np.where(np.arange(6) == 3, 1.0, np.nan)[None].repeat(2, 0))


# --------------------------------------------------------------------------------------- misuse


def test_a_run_is_used_within_its_with_statement(recorder):
    run = recorder.run("run", model=new_model(), loss=per_example)
    for use in (run.step, run.consumes):
        with pytest.raises(RecordingError, match="'run' has not begun: use it in a with statement"):
            use(["train-0"])
    with run:
        run.step(["train-0"])
        with pytest.raises(RunExistsError, match="in this process already"):
            recorder.run("run", model=new_model(), loss=per_example)
    for use in (run.step, run.consumes):
        with pytest.raises(RecordingError, match="'run' has ended"):
            use(["train-0"])
    with pytest.raises(RecordingError, match="ended already"), run:
        pass
    assert len(RunSet.load(recorder.path)[0]) == 1


@pytest.mark.parametrize("on_error", ["raise", "continue"])
@pytest.mark.parametrize(
    "wrong", [{"learning_rate": [0.1]}, {"train_loss": torch.ones(2)}, {"train_loss": "x"}]
)
def test_what_is_no_number_is_refused_and_recording_goes_on(tmp_path, on_error, wrong):
    recorder = RunRecorder(tmp_path, TRAIN, TEST, on_error=on_error)
    with recorder.run("run", model=new_model(), loss=per_example) as run:
        with pytest.raises(ValueError, match=f"step 1: {next(iter(wrong))} must be a number"):
            run.step(["train-0"], **wrong)
        assert run.recording
        run.step(["train-1"], train_loss=np.ones(1), learning_rate=torch.tensor(0.1))
    loaded = RunSet.load(tmp_path)[0]
    assert [batch.tolist() for batch in loaded.curriculum] == [[1]]
    assert loaded.train_loss.tolist() == [1.0]


def test_keys_that_json_has_not_are_named_before_anything_is_written(recorder):
    with pytest.raises(ValueError, match=r"keys of config\['a'\]\[1\] must be strings, got \(1, 2\)"):
        recorder.run("run", model=None, loss=per_example, config={"a": [0, {(1, 2): 3}]})
    assert recorder.status("run") is None


class Rows(torch.utils.data.Dataset):
    """A data set that is asked by number, and does not say where it ends."""

    def __len__(self):
        return 3

    def __getitem__(self, row):
        return TEST[row]


@pytest.mark.parametrize(
    "test", [(e for e in TEST[:3]), Rows(), pd.DataFrame(TEST[:3])], ids=["generator", "data set", "frame"]
)
def test_test_examples_of_many_forms(tmp_path, test):
    with RunRecorder(tmp_path, TRAIN, test).run("run", model=new_model(), loss=per_example) as run:
        run.step(["train-0"])
    assert RunSet.load(tmp_path)[0].loss.shape == (2, 3)


def test_a_hugging_face_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    train, test = datasets.Dataset.from_list(TRAIN), datasets.Dataset.from_list(TEST)
    model = new_model()
    with RunRecorder(tmp_path, train, test).run("run", model=model, loss=per_example) as run:
        run.step(["train-0"])
    with torch.no_grad():
        expected = per_example(model.eval(), TEST)
    np.testing.assert_allclose(RunSet.load(tmp_path)[0].loss[0], expected, rtol=1e-5)
    RunRecorder(tmp_path, TRAIN, TEST)  # they are the same examples


def test_a_table_instead_of_the_test_examples(tmp_path):
    with pytest.raises(TypeError, match="needs the examples"):
        RunRecorder(tmp_path, TRAIN, ExampleTable.of(TEST))


# -------------------------------------------------------------------------------------- too early


def test_a_run_without_a_step_is_not_complete(recorder):
    with (
        pytest.warns(IncompleteRunWarning, match="ended without a step; it is not complete"),
        recorder.run("run", model=new_model(), loss=per_example),
    ):
        pass
    assert recorder.status("run") == "interrupted"
    with pytest.raises(RunDataError, match="no complete run"):
        RunSet.load(recorder.path)


def test_a_run_with_fewer_steps_than_it_was_to_have_is_not_complete(recorder):
    def train(steps, early=False, **options):
        training = Training(steps=5)
        with recorder.run(
            "run", model=training.model, loss=per_example, total_steps=5, optimizer=training.optimizer,
            resume_every=1, resume=True, **options,
        ) as run:  # fmt: skip
            for _ in range(run.start, steps):
                run.step(training.step()[0])
            if early:
                run.ends_early()

    with pytest.warns(IncompleteRunWarning, match="after 3 of 5 steps; .* call run.ends_early"):
        train(3)
    assert recorder.status("run") == "interrupted"
    assert "3 of 5" in storage.read_manifest(recorder.path / "run")["error"]
    train(4, early=True)  # goes on, and ends as it was to
    assert recorder.status("run") == "complete"
    assert len(RunSet.load(recorder.path)[0]) == 4
