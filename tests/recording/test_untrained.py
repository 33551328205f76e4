"""A step that changed no weight is recorded as one: rate 0, no examples; a Run does not count it."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import TEST, TRAIN, bits, new_model, per_example

from simfluence.errors import RunDataError
from simfluence.recording import RunRecorder, UntrainedStepWarning, load_weights, weight_steps
from simfluence.runs import RunSet, show


@pytest.fixture
def recorder(tmp_path):
    return RunRecorder(tmp_path / "set", TRAIN, TEST)


def gradients(model, number):
    per_example(model.train(), TRAIN[4 * number : 4 * number + 4]).mean().backward()


def ids(number):
    return [example["id"] for example in TRAIN[4 * number : 4 * number + 4]]


def on_disk(recorder, run_id="run"):
    table = pq.read_table(recorder.path / run_id / "steps.parquet").to_pydict()
    return table["batch"][1:], table["learning_rate"][1:]


def record_without(left_out, recorder, model, optimizer, steps, update, **said):
    """Steps with gradients, in one of which the weights are not updated; the recorder warns of that one."""
    with (
        pytest.warns(UntrainedStepWarning, match=f"in step {left_out + 1} "),
        recorder.run("run", model=model, loss=per_example, optimizer=optimizer) as run,
    ):
        for number in range(steps):
            model.zero_grad()
            gradients(model, number)
            if number != left_out:
                update()
            run.step(ids(number), **said)


@pytest.mark.parametrize("fused", [False, True])
def test_updates_that_a_gradient_scaler_skips(recorder, fused):
    """A fused optimizer is called all the same, and receives the flag of infinite gradients."""
    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with (
        pytest.warns(UntrainedStepWarning, match="no optimizer changed a weight in step 2") as said,
        recorder.run("run", model=model, loss=per_example, optimizer=optimizer) as run,
    ):
        for number in range(5):
            optimizer.zero_grad()
            loss = per_example(model.train(), TRAIN[4 * number : 4 * number + 4]).mean()
            if number in (1, 3):
                loss = loss * torch.inf
            scaler.scale(loss).backward()
            before = bits(torch.nn.ModuleList(model.children()))
            scaler.step(optimizer)
            scaler.update()
            changed = bits(torch.nn.ModuleList(model.children())) != before
            assert changed == (number not in (1, 3))
            run.step(ids(number), train_loss=loss)
        assert run.steps == 5
    assert len(said) == 1
    batches, rates = on_disk(recorder)
    assert [len(batch) for batch in batches] == [4, 0, 4, 0, 4]
    assert rates == [0.01, 0.0, 0.01, 0.0, 0.01]
    loaded = RunSet.load(recorder.path)[0]
    assert [batch.tolist() for batch in loaded.curriculum] == [
        list(range(4 * n, 4 * n + 4)) for n in (0, 2, 4)
    ]
    assert loaded.learning_rate.tolist() == [0.01] * 3
    assert loaded.evaluated.tolist() == [0, 1, 2, 3]


def test_a_step_left_out_by_the_users_own_check(recorder):
    """The rate of the step before is not taken for this one's, even if the user names one."""
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record_without(2, recorder, model, optimizer, steps=4, update=optimizer.step, learning_rate=0.1)
    assert on_disk(recorder)[1] == [0.1, 0.1, 0.0, 0.1]
    assert [batch[0] for batch in RunSet.load(recorder.path)[0].curriculum] == [0, 4, 12]


def test_a_step_without_gradients_is_none(recorder):
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    with (
        pytest.warns(UntrainedStepWarning),
        recorder.run("run", model=model, loss=per_example, optimizer=optimizer) as run,
    ):
        for number in range(3):
            optimizer.zero_grad()
            if number != 1:
                gradients(model, number)
            optimizer.step()
            run.step(ids(number) if number != 1 else None)
    assert len(RunSet.load(recorder.path)[0]) == 2


class ByHand(torch.optim.Optimizer):
    """Its own step() is never called, as that of an optimizer that only wraps another."""

    def train(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                with torch.no_grad():
                    parameter -= group["lr"] * parameter.grad


def test_optimizers_that_work_without_their_step_function_are_noticed(recorder):
    model = new_model()
    optimizer = ByHand(model.parameters(), {"lr": 0.1})
    record_without(1, recorder, model, optimizer, steps=3, update=optimizer.train)
    loaded = RunSet.load(recorder.path)[0]
    assert [batch[0] for batch in loaded.curriculum] == [0, 8]
    assert np.isnan(loaded.learning_rate).all()  # not known, rather than a guess


def test_numbers_of_steps_of_weights_and_of_resuming(recorder):
    """Weights are named as a Run counts; the loop goes on where it was."""

    def smooth_model():
        return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))

    options = {"evaluate_every": 2, "keep_weights": [1, 3, 5], "resume_every": 2, "resume": True}

    def train(stop_after=None, **more):
        torch.manual_seed(0)
        model = smooth_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        arguments = {"model": model, "loss": per_example, "optimizer": optimizer} | options | more
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrainedStepWarning)
            with recorder.run("run", **arguments) as run:
                starts.append(run.start)
                for number in range(run.start, 6):
                    if number == stop_after:
                        raise KeyboardInterrupt
                    optimizer.zero_grad()
                    gradients(model, number)
                    if number not in (1, 3):
                        optimizer.step()
                    run.step(ids(number))
        return model

    starts: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(stop_after=5)
    assert show(recorder.path, "run").resumable_after == 4
    model = train()
    assert starts == [0, 4]
    run = RunSet.load(recorder.path)[0]
    assert [batch[0] for batch in run.curriculum] == [0, 8, 16, 20]
    # after loop steps 2, 4 and 6, of which 1 and 3 did not train
    assert run.evaluated.tolist() == [0, 1, 2, 4]
    assert weight_steps(recorder.path / "run") == [1, 2, 3]
    fresh = smooth_model()
    load_weights(recorder.path / "run", 2, fresh)
    with torch.no_grad():
        np.testing.assert_allclose(per_example(fresh, TEST), run.loss[2], rtol=1e-5)
        np.testing.assert_allclose(per_example(model, TEST), run.loss[3], rtol=1e-5)


def test_a_step_that_trained_needs_ids(recorder):
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder.run("run", model=model, loss=per_example, optimizer=optimizer) as run:
        gradients(model, 0)
        optimizer.step()
        with pytest.raises(RunDataError, match="step 1: it has no example ids"):
            run.step()
        gradients(model, 1)
        optimizer.step()
        run.consumes(ids(5))
        run.discards()
        run.step(ids(1))
    assert [batch[0] for batch in RunSet.load(recorder.path)[0].curriculum] == [4]
