"""One unreadable run does not make a set unloadable: it is named, and left out if so asked."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from simfluence.errors import RunDataError
from simfluence.runs import RunSet


@pytest.fixture
def path(tmp_path):
    batches = np.random.default_rng(0).integers(0, 5, (4, 3, 2))
    losses = np.random.default_rng(1).random((4, 4, 2))
    RunSet.from_arrays(batches, losses, train=5).save(tmp_path / "set")
    return tmp_path / "set"


def torn(folder):
    data = (folder / "steps.parquet").read_bytes()
    (folder / "steps.parquet").write_bytes(data[:-5])


def no_json(folder):
    (folder / "run.json").write_text("{")


def no_status(folder):
    manifest = json.loads((folder / "run.json").read_text())
    del manifest["status"]
    (folder / "run.json").write_text(json.dumps(manifest))


def other_examples(folder):
    manifest = json.loads((folder / "run.json").read_text())
    manifest["fingerprints"]["train"] = "other"
    (folder / "run.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [torn, no_json, no_status, other_examples])
def test_what_cannot_be_read_is_named_and_left_out_if_asked(path, damage):
    damage(path / "run-001")
    with pytest.raises(RunDataError, match=r"run-001.*unreadable='skip' loads the other runs"):
        RunSet.load(path)
    with pytest.warns(UserWarning, match=r"left out run-001 \(unreadable: "):
        runs = RunSet.load(path, unreadable="skip")
    assert runs.ids == ["run-000", "run-002", "run-003"]


def test_a_sound_set_loads_without_a_word(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(RunSet.load(path, unreadable="skip")) == 4
    with pytest.raises(ValueError, match="'raise' or 'skip', got 'ignore'"):
        RunSet.load(path, unreadable="ignore")


def test_nothing_readable_is_an_error(path):
    for run_id in ("run-000", "run-001", "run-002", "run-003"):
        no_json(path / run_id)
    with pytest.raises(RunDataError, match=r"no readable run; there are run-000 \(unreadable"):
        RunSet.load(path, incomplete=True, unreadable="skip")
