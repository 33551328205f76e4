"""Run by test_sharded under torchrun: one of two processes that train by DeepSpeed, on CPUs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import deepspeed
import pytest
import torch
from sharded import STEPS, batch_of, groups_of, plain
from tiny import TEST, TRAIN, per_example

from simfluence.recording import RunRecorder


def train(recorder: RunRecorder, stage: int) -> None:
    model = plain()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(groups_of(model), momentum=0.9), config=config
    )
    options = {"model": engine, "loss": per_example, "optimizer": optimizer}
    with pytest.raises(ValueError, match="DeepSpeed"):
        recorder.run("run", **options, resume_every=2)
    with recorder.run(f"zero-{stage}", **options, keep_weights="every", total_steps=STEPS) as run:
        for step in range(STEPS):
            batch = batch_of(step, torch.distributed.get_rank())
            engine.backward(per_example(engine, batch).mean())
            engine.step()
            run.step([example["id"] for example in batch])


def a_trainer(path: Path) -> None:
    from test_trainer import features, new_trainer

    from simfluence.recording.trainer import record_trainer

    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
    }
    made = new_trainer(path, "gpt2", max_steps=3, per_device_train_batch_size=2, deepspeed=config,
                       optim="sgd", lr_scheduler_type="constant")  # fmt: skip
    recorder = RunRecorder(path / "trainer", features(12, 0, "gpt2"), features(5, 1, "gpt2"), batch_size=2)
    record_trainer(made, recorder, "run", keep_weights=1)
    made.train()


def main(path: Path) -> None:
    torch.set_num_threads(1)
    # an operation that takes minutes to compile, and is not needed
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    deepspeed.init_distributed("gloo")
    recorder = RunRecorder(path / "set", TRAIN, TEST, batch_size=2)
    for stage in (0, 1, 3):
        train(recorder, stage)
    if importlib.util.find_spec("transformers"):
        a_trainer(path)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
