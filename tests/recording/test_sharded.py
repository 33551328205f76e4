"""Models whose weights are spread over two processes: recorded as if they were not."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import sharded
import torch
from test_data_parallel import in_two_processes
from tiny import TEST, new_model, per_example
from torch import nn

from simfluence.recording import load_weights
from simfluence.recording.watch import OptimizerWatch, Taken, innermost
from simfluence.runs import RunSet


def losses_of_one_process(model: nn.Module, optimizer: torch.optim.Optimizer) -> np.ndarray:
    """Of the same training with whole batches, [step, test]."""

    def evaluated() -> np.ndarray:
        with torch.no_grad():
            return per_example(model, TEST).numpy()

    losses = [evaluated()]
    for step in range(sharded.STEPS):
        optimizer.zero_grad()
        per_example(model, sharded.batch_of(step)).mean().backward()
        optimizer.step()
        losses.append(evaluated())
    return np.stack(losses)


def in_groups(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(sharded.groups_of(model))


def check(runs: RunSet, path: Path, name: str, new=sharded.plain, optimizer_of=in_groups) -> None:
    """Its losses are those of one process, and its weights load into a model of one process."""
    run, model = runs[runs.position(name)], new()
    expected = losses_of_one_process(model, optimizer_of(model))
    np.testing.assert_allclose(run.loss, expected, rtol=1e-4, err_msg=name)
    assert [batch.tolist() for batch in run.curriculum] == [
        [4 * step + i for i in range(4)] for step in range(sharded.STEPS)
    ]
    assert (run.learning_rate > 0).all()
    assert len(run.initial_weights) == 32
    for step in (0, 2, sharded.STEPS):
        loaded = new(seed=0 if new is sharded.mostly_frozen else 3)
        load_weights(path / name, step, loaded)
        with torch.no_grad():
            np.testing.assert_allclose(per_example(loaded, TEST), run.loss[step], rtol=1e-4, err_msg=name)


def test_fsdp(tmp_path):
    in_two_processes("sharded.py", tmp_path)
    path = tmp_path / "set"
    runs = RunSet.load(path)
    assert len(runs) == 5
    at_one_rate = lambda model: torch.optim.AdamW(model.parameters(), lr=0.1)  # noqa: E731
    check(runs, path, "whole")
    check(runs, path, "layers")
    check(runs, path, "frozen", sharded.mostly_frozen, lambda m: torch.optim.AdamW(m[2].parameters(), lr=0.1))
    check(runs, path, "fsdp1", optimizer_of=at_one_rate)
    check(runs, path, "fsdp1-flat", optimizer_of=at_one_rate)
    kept = path / "frozen" / "checkpoints" / f"step-{sharded.STEPS:06d}.safetensors"
    assert kept.stat().st_size < 4 * (273 + 540)  # not the frozen layer, of 540 numbers
    fingerprints = {run.id: run.initial_weights for run in runs}
    assert fingerprints["whole"] == fingerprints["layers"] != fingerprints["frozen"]
    assert [group["parameters"] for group in runs[runs.position("layers")].optimizer["groups"]] == [
        ["0.weight", "0.bias"],
        ["4.weight", "4.bias"],
    ]


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")
def test_deepspeed(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    in_two_processes("zero.py", tmp_path)
    runs = RunSet.load(tmp_path / "set")

    def with_momentum(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(sharded.groups_of(model), momentum=0.9)

    for stage in (0, 1, 3):
        check(runs, tmp_path / "set", f"zero-{stage}", optimizer_of=with_momentum)
    if importlib.util.find_spec("transformers"):
        check_trainer(tmp_path)


def check_trainer(path: Path) -> None:
    """The weights kept of a Trainer under ZeRO-3, in a model of one process."""
    from test_trainer import collate, features
    from test_trainer import new_model as new_language_model

    run, model = RunSet.load(path / "trainer")[0], new_language_model("gpt2").eval()
    assert sorted(run.curriculum.examples) == list(range(12))
    load_weights(path / "trainer" / "run", 3, model)
    for z, example in enumerate(features(5, 1, "gpt2")):
        with torch.no_grad():
            assert run.loss[-1, z] == pytest.approx(model(**collate([example])).loss.item(), rel=1e-5)
    assert run.learning_rate == pytest.approx([0.01, 0.01, 0.01])
    assert run.optimizer["class"] == "SGD"


def test_groups_that_step_one_after_the_other():
    """As under DeepSpeed's ZeRO."""
    optimizer = in_groups(model := sharded.plain())
    watch = OptimizerWatch([optimizer], model)
    watch.start()
    per_example(model, TEST).mean().backward()
    groups = optimizer.param_groups
    for group in groups:
        optimizer.param_groups = [group]
        optimizer.step()
    optimizer.param_groups = groups
    assert watch.taken() == Taken(True, (0.1, 0.2))
    assert watch.taken() == Taken(False, (0.0, 0.0))
    watch.end()


def test_the_optimizer_inside_wrappers_that_are_no_optimizers():
    """As DeepSpeed's ZeRO is one, inside accelerate's, which is one."""

    class Zero:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    class Accelerated(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    inside = torch.optim.SGD(new_model().parameters(), lr=0.1)
    assert innermost(Accelerated(Zero(inside))) is inside
    with pytest.raises(TypeError, match="expected a torch optimizer, got Zero"):
        innermost(Zero(None))
