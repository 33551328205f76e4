"""Fingerprints of initial weights: the same for equal weights, whatever holds them, and kept with the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TEST, TRAIN, Training, new_model, per_example
from torch import nn

from simfluence.recording import RunRecorder
from simfluence.recording.fingerprint import SAMPLE, weights_fingerprint
from simfluence.runs import RunSet, runs_start_alike, storage


def record(recorder, run_id, seed=0, steps=4, stop_after=None, **options):
    training = Training(seed, steps)
    options = {"resume_every": 2, "resume": True, "state": training.state} | options
    with recorder.run(
        run_id, model=training.model, loss=per_example, optimizer=training.optimizer, **options
    ) as run:
        for step in range(run.start, steps):
            if step == stop_after:
                raise KeyboardInterrupt
            run.step(training.step()[0])


def test_equal_weights_have_equal_fingerprints_and_any_other_weight_another():
    one = weights_fingerprint(new_model(0))
    assert one is not None
    assert len(one) == 32
    assert weights_fingerprint(new_model(0)) == one
    found = {one, weights_fingerprint(new_model(1)), weights_fingerprint(new_model(0).double())}
    for parameter in (model := new_model(0)).parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        found.add(weights_fingerprint(model))
    assert len(found) == 3 + len(list(model.parameters()))


@pytest.mark.parametrize(
    "wrapped",
    [lambda model: torch.compile(model, backend="eager"), nn.DataParallel],
    ids=["compiled", "parallel"],
)
def test_wrappers_and_what_trains_change_nothing(wrapped):
    model = new_model(0)
    assert weights_fingerprint(wrapped(model)) == weights_fingerprint(new_model(0))
    assert weights_fingerprint(model.requires_grad_(False).train()) == weights_fingerprint(new_model(0))


def test_half_precision_and_large_parameters_read_at_even_distances():
    model = nn.Linear(1, 3 * SAMPLE, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(model.weight)
    before = weights_fingerprint(model)
    for place, is_read in ((1, False), (3, True), (3 * SAMPLE - 3, True)):
        with torch.no_grad():
            model.weight[place] = 1
            assert (weights_fingerprint(model) != before) == is_read
            model.weight[place] = 0


def test_what_has_no_weights_has_no_fingerprint():
    assert weights_fingerprint(lambda batch: batch) is None
    assert weights_fingerprint(nn.LazyLinear(3)) is None
    assert weights_fingerprint(nn.Linear(2, 2, device="meta")) is None


def test_runs_keep_it_through_resuming_and_files_and_parts_of_sets(tmp_path):
    recorder = RunRecorder(tmp_path / "set", TRAIN, TEST)
    with pytest.raises(KeyboardInterrupt):
        record(recorder, "run-0", stop_after=3)
    record(recorder, "run-0")  # whose weights are not the initial ones as it goes on
    record(recorder, "run-1")
    runs = RunSet.load(recorder.path)
    assert [run.initial_weights for run in runs] == [weights_fingerprint(new_model(0))] * 2
    assert runs.start_alike is True
    assert runs_start_alike(recorder.path) is True
    record(recorder, "run-2", seed=1)
    runs = RunSet.load(recorder.path)
    assert runs[2].initial_weights == weights_fingerprint(new_model(1))
    assert runs.start_alike is False
    assert runs_start_alike(recorder.path) is False
    assert runs[:2].start_alike is True
    runs.save(tmp_path / "again")
    again = RunSet.load(tmp_path / "again")
    assert [run.initial_weights for run in again] == [run.initial_weights for run in runs]


def test_recordings_without_it_load_as_before(tmp_path):
    recorder = RunRecorder(tmp_path / "set", TRAIN, TEST)
    for seed in (0, 1):
        record(recorder, f"run-{seed}", seed)
        manifest = storage.read_manifest(recorder.path / f"run-{seed}")
        del manifest["initial_weights"]
        storage.write_manifest(recorder.path / f"run-{seed}", manifest)
    runs = RunSet.load(recorder.path)
    assert [run.initial_weights for run in runs] == [None, None]
    assert not np.allclose(*runs.initial_loss)
    assert runs.start_alike is False  # by these losses
    assert runs_start_alike(recorder.path) is False
