"""Run by test_sharded under torchrun: one of two processes that share a model's weights (FSDP)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny import TEST, TRAIN, new_model, per_example
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from simfluence.recording import RunRecorder

STEPS = 4


def plain(seed: int = 0) -> nn.Module:
    """Without batch norm, which would see the processes' shares apart, and dropout."""
    model = new_model(seed)
    model[1] = model[3] = nn.Identity()
    return model


def mostly_frozen(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 90), nn.Tanh(), nn.Linear(90, 3))
    model[0].requires_grad_(False)
    return model


def groups_of(model: nn.Module) -> list[dict]:
    """The last layer has another rate."""
    return [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[-1].parameters(), "lr": 0.2}]


def batch_of(step: int, rank: int | None = None) -> list[dict]:
    whole = TRAIN[4 * step :][:4]
    return whole if rank is None else whole[2 * rank :][:2]


def shard(model: nn.Module, layers: bool = False) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for layer in model if layers else ():
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def shard_as_before(model: nn.Module, names: bool) -> nn.Module:
    policy = ModuleWrapPolicy({nn.Linear})
    return FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), auto_wrap_policy=policy, use_orig_params=names
    )


def train(recorder: RunRecorder, name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with recorder.run(
        name, model=model, loss=per_example, optimizer=optimizer, keep_weights="every", total_steps=STEPS
    ) as run:
        for step in range(STEPS):
            batch = batch_of(step, dist.get_rank())
            optimizer.zero_grad()
            per_example(model.train(), batch).mean().backward()
            optimizer.step()
            run.step([example["id"] for example in batch])


def a_language_model(path: Path) -> None:
    """Its loss is found by its own, though FSDP's wrapper hides what it takes."""
    from test_trainer import collate, features
    from test_trainer import new_model as new_language_model

    from simfluence.recording.losses import model_loss

    examples = features(5, 1, "gpt2")
    recorder = RunRecorder(path / "language", train=examples, test=examples, batch_size=2)
    expected = model_loss(collate)(new_language_model("gpt2").eval(), examples)["loss"].detach().numpy()
    model = FullyShardedDataParallel(new_language_model("gpt2"), device_id=torch.device("cpu"))
    with recorder.run("run", model=model, loss=model_loss(collate)) as run:
        np.testing.assert_allclose(run.losses["loss"], expected, rtol=1e-5)
        run.step(["1-0"])


def main(path: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    recorder = RunRecorder(path / "set", TRAIN, TEST, batch_size=2)
    model = shard(plain())
    optimizer = torch.optim.AdamW(groups_of(model))
    with pytest.raises(ValueError, match="FSDP"):
        recorder.run("whole", model=model, loss=per_example, optimizer=optimizer, resume_every=2)
    train(recorder, "whole", model, optimizer)

    model = shard(plain(), layers=True)
    train(recorder, "layers", model, torch.optim.AdamW(groups_of(model)))
    model = shard(mostly_frozen(), layers=True)
    train(recorder, "frozen", model, torch.optim.AdamW(model[2].parameters(), lr=0.1))
    for name, with_names in (("fsdp1", True), ("fsdp1-flat", False)):
        model = shard_as_before(plain(), with_names)
        train(recorder, name, model, torch.optim.AdamW(model.parameters(), lr=0.1))
    if importlib.util.find_spec("transformers"):
        a_language_model(path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
