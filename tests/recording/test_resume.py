"""A run that was cut off goes on from its last resumable checkpoint, to the same bits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEST, TRAIN, Training, bits, per_example
from torch import nn

from simfluence.errors import RecordingError
from simfluence.recording import RunRecorder, training_state
from simfluence.runs import RunSet, storage

STEPS = 12


def train(recorder, stop_after=None, model=None, **options):
    """Twelve steps, with a checkpoint every five; optionally cut off."""
    training = Training(steps=STEPS)
    options = {"resume_every": 5, "resume": True, "state": training.state} | options
    with recorder.run(
        "seed-0", model=training.model, loss=per_example, optimizer=training.optimizer, **options
    ) as run:
        for step in range(run.start, STEPS):
            if step == stop_after:
                raise KeyboardInterrupt
            ids, loss = training.step()
            run.step(ids, train_loss=loss)
    return training, run


def test_twenty_kills(tmp_path):
    """SIGKILL at random moments, within writes too: what was said to be recorded is there, and the
    resumed run's weights, checkpoints and recording are those of one that was left alone."""
    script = Path(__file__).with_name("killed.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # torch's threads for GPUs do not survive the script's forks
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    outcome = json.loads(ran.stdout)
    assert sum(was_killed for *_, was_killed in outcome["happened"]) == 20
    assert len(outcome["resumed"]) >= 5
    assert outcome["different"] == []


@pytest.mark.parametrize("stop_after", [3, 5, 8, 11])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path, stop_after):
    alone = RunRecorder(tmp_path / "alone", TRAIN, TEST)
    whole, run = train(alone, keep_weights=3, total_steps=STEPS)
    assert run.start == 0
    recorder = RunRecorder(tmp_path / "cut", TRAIN, TEST)
    with pytest.raises(KeyboardInterrupt):
        train(recorder, stop_after, keep_weights=3, total_steps=STEPS)
    resumed, run = train(recorder, keep_weights=3, total_steps=STEPS)
    assert run.start == stop_after // 5 * 5
    assert bits(resumed.model) == bits(whole.model)
    for name in (
        "steps.parquet",
        "checkpoints/step-000004.safetensors",
        "checkpoints/step-000012.safetensors",
    ):
        assert (recorder.path / "seed-0" / name).read_bytes() == (alone.path / "seed-0" / name).read_bytes()
    manifest = storage.read_manifest(recorder.path / "seed-0")
    assert manifest["resumed_at"] == ([] if stop_after == 3 else [run.start])
    assert not (recorder.path / "seed-0" / "resume").exists()
    if stop_after != 3:
        assert run.losses["loss"].tolist() == RunSet.load(recorder.path)[0].loss[-1].tolist()


def test_after_every_resume_the_last_losses_are_known(tmp_path):
    recorder = RunRecorder(tmp_path, TRAIN, TEST)
    with pytest.raises(KeyboardInterrupt):
        train(recorder, 8)
    before = RunSet.load(tmp_path, incomplete=True)[0]
    training = Training(steps=STEPS)
    run = recorder.run(
        "seed-0",
        model=training.model,
        loss=per_example,
        optimizer=training.optimizer,
        state=training.state,
        resume_every=5,
        resume=True,
    )
    with pytest.raises(KeyboardInterrupt), run:
        assert run.losses["loss"].tolist() == before.loss[5].tolist()
        assert (run.start, run.steps) == (5, 5)
        raise KeyboardInterrupt
    assert len(RunSet.load(tmp_path, incomplete=True)[0]) == 5


def test_a_framework_may_restore_the_training_itself(tmp_path):
    recorder = RunRecorder(tmp_path, TRAIN, TEST)
    with pytest.raises(KeyboardInterrupt):
        train(recorder, 8, resume_every=None)
    with pytest.raises(RecordingError, match="only 8 recorded steps"):
        train(recorder, resume=9, resume_every=None)
    assert len(RunSet.load(tmp_path, incomplete=True)[0]) == 8
    _, run = train(recorder, resume=6, resume_every=None)
    assert (run.start, run.steps) == (6, 12)
    assert len(RunSet.load(tmp_path)[0]) == 12


def test_the_checkpoint_must_be_about_the_same_objects(tmp_path):
    recorder = RunRecorder(tmp_path, TRAIN, TEST)
    with pytest.raises(KeyboardInterrupt):
        train(recorder, 6)
    with pytest.raises(RecordingError, match=r"holds the state of \['model', 'optimizer', 'order'"):
        train(recorder, state={"model": Training().model})
    assert len(RunSet.load(tmp_path, incomplete=True)[0]) == 6
    (tmp_path / "seed-0" / "resume" / "step-000005" / "state.json").write_text("{")
    with pytest.raises(RecordingError, match="cannot be resumed from"):
        train(recorder)
    train(recorder, resume=False, restart=True)


def test_a_journal_that_does_not_reach_the_checkpoint_is_begun_anew(tmp_path):
    """As after a power cut on a file system that kept the later file and lost the earlier one's end."""
    recorder = RunRecorder(tmp_path, TRAIN, TEST)
    with pytest.raises(KeyboardInterrupt):
        train(recorder, 8)
    journal = tmp_path / "seed-0" / "journal.arrow"
    journal.write_bytes(journal.read_bytes()[:-3000])
    _, run = train(recorder)
    assert (run.start, run.steps) == (0, STEPS)
    assert (tmp_path / "seed-0" / "attempt-1" / "journal.arrow").exists()


def test_states_are_saved_exactly_and_without_code(tmp_path):
    tensor = torch.randn(3, 4)
    state = {
        "tensors": {0: tensor, 1: tensor, 2: tensor.T, "half": tensor.bfloat16(), "none": torch.empty(0)},
        "numbers": (1, 0.1, -0.0, float("inf"), 2**200, True, None, "text"),
        "nested": [{"betas": (0.9, 0.999)}, [np.float32(0.1), np.arange(3, dtype=np.uint32)]],
        "random": training_state.random_states(),
    }
    training_state.save(tmp_path, 3, state)
    training_state.save(tmp_path, 7, state)
    assert training_state.steps(tmp_path) == [7]
    loaded = training_state.load(tmp_path, 7)
    for key, values in state["tensors"].items():
        assert loaded["tensors"][key].dtype == values.dtype
        assert torch.equal(loaded["tensors"][key], values)
    assert repr(loaded["numbers"]) == repr(state["numbers"])
    assert loaded["nested"][0] == {"betas": (0.9, 0.999)}
    assert loaded["nested"][1][0] == np.float32(0.1)
    assert loaded["nested"][1][1].dtype == np.uint32
    assert loaded["random"]["python"] == random.getstate()
    with pytest.raises(RecordingError, match=r"state\['f'\]\[0\] is a function"):
        training_state.save(tmp_path, 8, {"f": [per_example]})
    assert training_state.steps(tmp_path) == [7]


def test_generators_of_all_kinds_go_on_where_they_were(tmp_path):
    sources = {"torch": torch.Generator(), "numpy": np.random.default_rng(5), "python": random.Random(5)}
    training_state.save(tmp_path, 1, training_state.capture(sources))
    expected = (
        torch.rand(2, generator=sources["torch"]),
        sources["numpy"].random(),
        sources["python"].random(),
    )
    training_state.restore(sources, training_state.load(tmp_path, 1))
    assert torch.equal(torch.rand(2, generator=sources["torch"]), expected[0])
    assert (sources["numpy"].random(), sources["python"].random()) == expected[1:]


def test_a_momentum_optimizer_over_tied_weights(tmp_path):
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    (model[0](torch.ones(3)) + model[1](torch.ones(3))).sum().backward()
    optimizer.step()
    training_state.save(tmp_path, 1, training_state.capture({"model": model, "optimizer": optimizer}))
    before, momentum = bits(model), optimizer.state[model[0].weight]["momentum_buffer"].clone()
    optimizer.step()
    training_state.restore({"model": model, "optimizer": optimizer}, training_state.load(tmp_path, 1))
    assert bits(model) == before
    assert model[1].weight is model[0].weight
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], momentum)
