"""Loops of accelerate and transformers.Trainers, whose batches are dispatched or split over the processes.

Run by test_accelerate, in one process or under torchrun. The truth is what the model is given: every process
writes the rows of TRAIN that it trained on, step by step, beside what is recorded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import GradientState
from test_trainer import collate, features, new_trainer
from tiny import TEST, TRAIN, new_model, per_example
from torch import nn
from torch.utils.data import DataLoader

from simfluence.recording import RunRecorder
from simfluence.recording.processes import Processes
from simfluence.recording.trainer import record_trainer

WAYS = {
    "sharded": {},
    "dispatched": {"dispatch_batches": True},
    "split": {"split_batches": True},
    "dispatched-and-split": {"dispatch_batches": True, "split_batches": True},
}
N, BATCH = 23, 4  # the last batch is completed with examples of the first


def numbers(examples: list[tuple[int, dict]]) -> dict:
    """Rows as tensors, for dispatched batches consist of tensors alone."""
    return {
        "row": torch.tensor([row for row, _ in examples]),
        "x": torch.tensor([example["x"] for _, example in examples]),
        "y": torch.tensor([example["y"] for _, example in examples]),
    }


def names(examples: list[tuple[int, dict]]) -> dict:
    return {**numbers(examples), "id": [example["id"] for _, example in examples]}


class Trained:
    """The rows of each micro-batch that a model was given in training, as their inputs say."""

    def __init__(self, model: nn.Module, row_of: Callable[[dict, tuple], list[int]]) -> None:
        self.batches: list[list[int]] = []
        self._row_of = row_of
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module.training:
            self.batches.append(self._row_of(kwargs, args))

    def write(self, path: Path) -> None:
        path.with_name(f"{path.name}-{Processes.current().rank}.json").write_text(json.dumps(self.batches))


def loop(path: Path, way: str, *, accumulated: int = 1) -> None:
    """An epoch of a loop as accelerate's documentation has it."""
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=accumulated,
        dataloader_config=DataLoaderConfiguration(**WAYS[way]),
    )
    inner = new_model()
    inner[1] = nn.Identity()  # batch norm would see the shares apart
    rows = {round(example["x"][0], 5): row for row, example in enumerate(TRAIN)}
    trained = Trained(inner, lambda kwargs, args: [rows[round(float(x[0]), 5)] for x in args[0]])
    loader = DataLoader(
        list(enumerate(TRAIN[:N])),
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        collate_fn=numbers if "dispatched" in way else names,
    )
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(inner, optimizer, loader)
    recorder = RunRecorder(path / "set", TRAIN, TEST, batch_size=2)
    run_id = f"{way}-{accumulated}"
    with recorder.run(run_id, model=model, loss=per_example, optimizer=optimizer) as run:
        for batch in loader:
            with accelerator.accumulate(model):
                ids = batch.get("id") or [TRAIN[row]["id"] for row in batch["row"]]
                run.consumes(ids)
                loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                run.step(train_loss=loss)
    trained.write(path / run_id)
    GradientState._reset_state()


def padded(examples: list[dict]) -> dict:
    """All of one length: dispatched batches are laid end to end."""
    filled = [{**e, "input_ids": (e["input_ids"] + [0] * 8)[:8]} for e in examples]
    return collate(filled)


def trainer(path: Path, way: str) -> None:
    rows = features(N, 0, "bert")
    options = {"ddp_backend": "gloo"} if Processes.current().size > 1 else {}
    made = new_trainer(path, train=rows, num_train_epochs=1, max_steps=-1, per_device_train_batch_size=BATCH,
                       accelerator_config=WAYS[way], **options)  # fmt: skip
    made.data_collator = padded
    number = {tuple(padded([row])["input_ids"][0].tolist()): place for place, row in enumerate(rows)}
    trained = Trained(
        made.model, lambda kwargs, args: [number[tuple(x)] for x in kwargs["input_ids"].tolist()]
    )
    recorder = RunRecorder(path / "trainer", train=rows, test=features(5, 1, "bert"), batch_size=2)
    record_trainer(made, recorder, way)
    made.train()
    trained.write(path / f"trainer-{way}")


def main(path: Path) -> None:
    torch.set_num_threads(1)
    for way in ("dispatched", "split", "dispatched-and-split"):
        loop(path, way)
    loop(path, "dispatched", accumulated=2)
    for way in ("sharded", "dispatched", "split"):
        trainer(path, way)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
