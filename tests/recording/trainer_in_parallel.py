"""Run by test_data_parallel under torchrun: a transformers.Trainer in each of two processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from test_trainer import features, new_recorder, new_trainer

from simfluence.recording.trainer import record_trainer


def main(path: Path) -> None:
    torch.set_num_threads(1)
    trainer = new_trainer(path, train=features(12, 0, "bert"), max_steps=3, ddp_backend="gloo",
                          per_device_train_batch_size=2)  # fmt: skip
    record_trainer(trainer, new_recorder(path), "seed-0")
    trainer.train()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
