"""Run by test_data_parallel under torchrun: one of the processes of a data-parallel training."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from tiny import TEST, TRAIN, new_model, per_example
from torch import nn

from simfluence.errors import RecordingError, RunDataError, RunExistsError
from simfluence.recording import RunRecorder, budget

STEPS, SHARE = 8, 2


def batch_of(step: int, rank: int, size: int) -> list[dict]:
    first = (step * size + rank) * SHARE
    return [TRAIN[(first + i) % len(TRAIN)] for i in range(SHARE)]


def train(path: Path, recorder: RunRecorder | None, stop_after: int | None = None, **options) -> nn.Module:
    rank, size = dist.get_rank(), dist.get_world_size()
    inner = new_model()
    inner[1] = nn.Identity()  # batch norm would see the shares apart
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    torch.manual_seed(100 + rank)
    evaluated: list[str] = []

    def loss(model: nn.Module, examples: list[dict]) -> torch.Tensor:
        evaluated.extend(example["id"] for example in examples)
        return per_example(model, examples)

    def one_step(step: int) -> tuple[list[dict], torch.Tensor]:
        batch = batch_of(step, rank, size)
        value = per_example(model, batch).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return batch, value

    if recorder is None:
        for step in range(STEPS):
            one_step(step)
        return inner
    with recorder.run(
        "seed-0", model=model, loss=loss, optimizer=optimizer, resume_every=3, keep_weights=1,
        total_steps=STEPS, **options,
    ) as run:  # fmt: skip
        for step in range(run.start, STEPS):
            if step == stop_after:
                raise KeyboardInterrupt
            batch, value = one_step(step)
            run.step([example["id"] for example in batch], train_loss=value)
    # each test example is evaluated by one process, every time
    (path / f"evaluated-{rank}").write_text("\n".join(sorted(set(evaluated))))
    return inner


def fails_everywhere(kind: type[Exception], action) -> None:
    try:
        action()
    except kind:
        return
    raise AssertionError(f"process {dist.get_rank()} expected a {kind.__name__}")


def one_evaluation_fails(path: Path) -> None:
    """In one process only: all hear of it, and catch it."""
    failing = [False]

    def loss(model: nn.Module, examples: list[dict]) -> torch.Tensor:
        if failing[0] and dist.get_rank() == 1:
            raise torch.OutOfMemoryError("made up")
        return per_example(model, examples)

    recorder = RunRecorder(path / "caught", TRAIN, TEST, batch_size=2)
    kind = torch.OutOfMemoryError if dist.get_rank() == 1 else RecordingError
    with recorder.run("run", model=new_model(), loss=loss) as run:
        for step in range(3):
            failing[0] = step == 1
            if failing[0]:
                fails_everywhere(kind, lambda: run.step(["train-0"]))
            else:
                run.step(["train-0"])


def one_update_is_skipped(path: Path) -> None:
    model = new_model()
    model[1] = nn.Identity()
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = RunRecorder(path / "skipped", TRAIN, TEST, batch_size=2)
    with recorder.run("run", model=model, loss=per_example, optimizer=optimizer, keep_weights="every") as run:
        for step in range(3):
            batch = batch_of(step, dist.get_rank(), 2)
            optimizer.zero_grad()
            per_example(model, batch).mean().backward()
            if step != 1:
                optimizer.step()
            run.step([example["id"] for example in batch])


def within_a_budget(path: Path) -> None:
    """To process 1 time stands still: it evaluates when process 0 does, or both would wait for ever."""
    passing = 1.0 if dist.get_rank() == 0 else 0.0
    clock = iter(range(10_000))
    budget.time = SimpleNamespace(monotonic=lambda: passing * next(clock))
    recorder = RunRecorder(path / "within", TRAIN, TEST, batch_size=2)
    options = {"total_steps": 40, "evaluate_within": 0.3}
    with recorder.run("run", model=new_model(), loss=per_example, **options) as run:
        for step in range(40):
            run.step([example["id"] for example in batch_of(step, dist.get_rank(), 2)])


def over_a_stream(path: Path) -> None:
    """Examples are known by their content; two that share an id are noticed by both processes."""
    recorder = RunRecorder(path / "stream", "stream", TEST, batch_size=2)
    with recorder.run("run", model=new_model(), loss=per_example, total_steps=3, evaluate_subset=2) as run:
        for step in range(3):
            batch = batch_of(step, dist.get_rank(), 2)
            run.step([{key: value for key, value in one.items() if key != "id"} for one in batch])

    def one_id_for_two() -> None:
        other = RunRecorder(path / "one-id", "stream", TEST)
        with other.run("run", model=new_model(), loss=per_example) as run:
            run.step([{"id": "same", "x": dist.get_rank()}])

    fails_everywhere(RunDataError, one_id_for_two)


def main(path: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    recorder = RunRecorder(path / "set", TRAIN, TEST, batch_size=2)
    bare = train(path, None)
    recorded = train(path, recorder)
    for a, b in zip(bare.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(a, b), "recording changed the training"
    fails_everywhere(RunExistsError, lambda: train(path, recorder))

    other = RunRecorder(path / "resumed", TRAIN, TEST, batch_size=2)
    fails_everywhere(KeyboardInterrupt, lambda: train(path, other, stop_after=5))
    resumed = train(path, other, resume=True)
    for a, b in zip(resumed.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(a, b), "the resumed training went another way"

    def one_process_errs() -> None:
        ids = ["train-0"] if dist.get_rank() == 0 else ["nobody"]
        with recorder.run("wrong-ids", model=new_model(), loss=per_example) as run:
            run.step(["train-0"])
            run.step(ids)

    fails_everywhere(RunDataError, one_process_errs)

    one_evaluation_fails(path)
    one_update_is_skipped(path)
    within_a_budget(path)
    over_a_stream(path)
    for on_error in ("continue", "raise"):
        fragile = RunRecorder(path / on_error, TRAIN, TEST, on_error=on_error)

        def the_disk_goes(fragile: RunRecorder = fragile) -> None:
            with fragile.run("vanishes", model=new_model(), loss=per_example) as run:
                run.step(["train-0"])
                if dist.get_rank() == 0:
                    (fragile.path / "vanishes" / "journal.arrow").unlink()
                for _ in range(3):
                    run.step(["train-0"])
                assert not run.recording

        if on_error == "raise":
            fails_everywhere(RecordingError, the_disk_goes)
        else:
            the_disk_goes()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
