"""Parameter groups with settings of their own: all are recorded."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import TEST, TRAIN, new_model, per_example
from torch.optim.lr_scheduler import LambdaLR

from simfluence.recording import RunRecorder
from simfluence.runs import RunSet


@pytest.fixture
def recorder(tmp_path):
    return RunRecorder(tmp_path / "set", TRAIN, TEST)


def record(recorder, model, optimizers, steps=4, before_step=lambda number: None, only=None, **options):
    """``only``: step → the number of the one optimizer that steps."""
    with recorder.run("run", model=model, loss=per_example, optimizer=optimizers, **options) as run:
        for number in range(steps):
            before_step(number)
            model.zero_grad()
            per_example(model.train(), TRAIN[4 * number :][:4]).mean().backward()
            each = optimizers if isinstance(optimizers, list) else [optimizers]
            for one in each if only is None else [each[only(number)]]:
                one.step()
            run.step([example["id"] for example in TRAIN[4 * number :][:4]])


def test_settings_of_each_group_with_the_names_of_its_parameters(recorder):
    model = new_model()
    body = [*model[0].parameters(), *model[1].parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": model[4].parameters(), "lr": 0.01, "betas": (0.8, 0.9)},
            {"params": body, "lr": 0.001, "weight_decay": 0.0},
        ],
        weight_decay=0.1,
    )
    record(recorder, model, optimizer)
    run = RunSet.load(recorder.path)[0]
    # 64 trained parameters in the body, 27 in the head
    assert (run.optimizer["lr"], run.optimizer["betas"], run.optimizer["weight_decay"]) == (
        0.001,
        [0.9, 0.999],
        0.0,
    )
    assert run.optimizer["groups"] == [
        {"parameters": ["4.weight", "4.bias"], "lr": 0.01, "betas": [0.8, 0.9], "weight_decay": 0.1},
        {
            "parameters": ["0.weight", "0.bias", "1.weight", "1.bias"],
            "lr": 0.001,
            "betas": [0.9, 0.999],
            "weight_decay": 0.0,
        },
    ]
    np.testing.assert_allclose(run.learning_rate, 0.001)
    np.testing.assert_allclose(run.group_rates, [[0.01, 0.001]] * 4)


def test_groups_that_do_not_differ_are_not_listed(recorder):
    model = new_model()
    groups = [{"params": model[4].parameters()}, {"params": model[0].parameters()}]
    record(recorder, model, torch.optim.SGD(groups, lr=0.1))
    run = RunSet.load(recorder.path)[0]
    assert "groups" not in run.optimizer
    assert run.group_rates is None
    assert "group_rates" not in pq.read_schema(recorder.path / "run" / "steps.parquet").names


def test_a_group_that_is_not_trained_does_not_stand_for_the_run(recorder):
    model = new_model()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[4].parameters(), "lr": 0.1}]
    record(recorder, model, torch.optim.SGD(groups))
    run = RunSet.load(recorder.path)[0]
    assert run.learning_rate.tolist() == [0.1] * 4
    assert run.group_rates.tolist() == [[0.0, 0.1]] * 4


def test_schedules_of_their_own_after_an_equal_beginning(recorder):
    model = new_model()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[4].parameters()}], lr=0.1
    )
    schedule = LambdaLR(optimizer, [lambda step: 1.0, lambda step: 0.5**step])
    record(recorder, model, optimizer, before_step=lambda number: schedule.step() if number else None)
    run = RunSet.load(recorder.path)[0]
    np.testing.assert_allclose(run.group_rates, [[0.1, 0.1], [0.1, 0.05], [0.1, 0.025], [0.1, 0.0125]])
    assert [group["parameters"][0] for group in run.optimizer["groups"]] == ["0.weight", "4.weight"]


def test_a_group_that_is_added_while_training(recorder):
    """As where layers are unfrozen by and by."""
    model = new_model()
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)

    def unfreeze(number):
        if number == 2:
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.1})

    record(recorder, model, optimizer, before_step=unfreeze)
    run = RunSet.load(recorder.path)[0]
    assert run.group_rates.tolist() == [[0.1, 0.0]] * 2 + [[0.1, 0.1]] * 2
    assert run.learning_rate.tolist() == [0.1] * 4
    assert [group["parameters"] for group in run.optimizer["groups"]] == [
        ["4.weight", "4.bias"],
        ["0.weight", "0.bias"],
    ]


def test_several_optimizers_by_turns(recorder):
    model = new_model()
    optimizers = [
        torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.5),
        torch.optim.AdamW(model[4].parameters(), lr=0.01),
    ]
    record(recorder, model, optimizers, only=lambda number: number % 2, resume_every=2)
    run = RunSet.load(recorder.path)[0]
    assert run.group_rates.tolist() == [[0.1, 0.0], [0.0, 0.01]] * 2
    assert run.learning_rate.tolist() == [0.1, 0.0] * 2
    assert run.optimizer["class"] == "SGD"
    assert [group["class"] for group in run.optimizer["groups"]] == ["SGD", "AdamW"]
    assert [group["momentum"] for group in run.optimizer["groups"]] == [0.5, None]


def test_parameters_that_are_not_the_models_are_counted(recorder):
    model, other = new_model(), torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": model.parameters()}, {"params": [other], "lr": 1.0}]
    record(recorder, model, torch.optim.SGD(groups, lr=0.1))
    second = RunSet.load(recorder.path)[0].optimizer["groups"][1]
    assert (second["parameters"], second["other_parameters"]) == ([], 1)


@pytest.mark.parametrize("complete", [True, False])
def test_rates_of_groups_are_saved_loaded_and_resumed(recorder, tmp_path, complete):
    def train(stop=None):
        torch.manual_seed(0)
        model = new_model()
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[4].parameters(), "lr": 0.2}]
        optimizer = torch.optim.SGD(groups)

        def before(number):
            optimizer.param_groups[1]["lr"] = 0.2 / (number + 1)
            if number == stop:
                raise KeyboardInterrupt

        record(recorder, model, optimizer, before_step=before, resume=True)

    if not complete:
        with pytest.raises(KeyboardInterrupt):
            train(stop=3)
    else:
        train()
    run = RunSet.load(recorder.path, incomplete=True)[0]
    np.testing.assert_allclose(run.group_rates, [[0.1, 0.2 / n] for n in range(1, 5 if complete else 4)])
    RunSet.load(recorder.path, incomplete=True).save(tmp_path / "copy")
    copy = RunSet.load(tmp_path / "copy", incomplete=True)[0]
    np.testing.assert_array_equal(copy.group_rates, run.group_rates)
    assert copy.optimizer == run.optimizer


def test_a_journal_from_before_there_were_group_rates_is_read_and_continued(recorder):
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def interrupt(number):
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(recorder, model, optimizer, before_step=interrupt)
    folder = recorder.path / "run"
    from simfluence.runs import journal

    entries = [row.drop_columns(["group_rates"]) for row in journal.read(folder / "journal.arrow")]
    old = journal.Journal(folder / "old.arrow", entries[0].schema)
    for entry in entries:
        old.append(pa.RecordBatch.from_arrays(entry.columns, schema=entries[0].schema))
    old.close()
    (folder / "old.arrow").replace(folder / "journal.arrow")
    assert len(RunSet.load(recorder.path, incomplete=True)[0]) == 3
    record(recorder, model, optimizer, steps=2, resume=3)
    run = RunSet.load(recorder.path)[0]
    assert (len(run), run.group_rates) == (5, None)
    assert "groups" not in json.loads((folder / "run.json").read_text())["optimizer"]
