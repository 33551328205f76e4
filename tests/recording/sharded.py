"""Run by test_wrappers under torchrun: one of two processes that share a model's weights (FSDP)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import TEST, TRAIN, new_model, per_example
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from simfluence.recording import RunRecorder


def main(path: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = new_model()
    model[1] = nn.Identity()
    model[3] = nn.Identity()  # dropout would differ between the processes
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[4].parameters(), "lr": 0.2}]
    optimizer = torch.optim.AdamW(groups)
    recorder = RunRecorder(path / "set", TRAIN, TEST, batch_size=2)
    with pytest.raises(ValueError, match="FSDP"):
        recorder.run("run", model=model, loss=per_example, optimizer=optimizer, resume_every=2)
    with recorder.run(
        "run", model=model, loss=per_example, optimizer=optimizer, keep_weights="every", total_steps=4
    ) as run:
        for step in range(4):
            batch = TRAIN[4 * step + 2 * rank :][:2]
            optimizer.zero_grad()
            per_example(model.train(), batch).mean().backward()
            optimizer.step()
            run.step([example["id"] for example in batch])
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
