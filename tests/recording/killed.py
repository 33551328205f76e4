"""Run by test_resume: kills a training at random moments, resumes it, and compares it with one left alone.

One process imports torch and forks the trainings, each in a process of its own. Moments are of four
kinds: any (a timer), in the middle of a write to the journal, before and after a rename.

Prints a JSON object: what happened, and the names of what did not turn out the same.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny import TEST, TRAIN, Training, bits, per_example

from simfluence.recording import RunRecorder
from simfluence.runs import RunSet, storage

STEPS, KILLS = 40, 20
KINDS = ("timer", "write", "before rename", "after rename")


def train(folder: Path, run_id: str, said: int) -> None:
    """What a user's script does; it reports every recorded step to its parent process."""
    training = Training(seed=int(run_id.removeprefix("run-")), steps=STEPS)
    recorder = RunRecorder(folder, TRAIN, TEST)
    with recorder.run(
        run_id,
        model=training.model,
        loss=per_example,
        optimizer=training.optimizer,
        state=training.state,
        resume_every=7,
        keep_weights=4,
        total_steps=STEPS,
        resume=True,
    ) as run:
        for _ in range(run.start, STEPS):
            ids, loss = training.step()
            run.step(ids, train_loss=loss)
            os.write(said, bytes([run.steps]))
        (folder / f"{run_id}.weights").write_bytes(bits(training.model))


def die_within(kind: str, moment: int) -> None:
    """Arrange for this process to be killed at the moment-th call of that kind."""
    name = {"write": "write", "before rename": "replace", "after rename": "replace"}[kind]
    original, calls = getattr(os, name), 0

    def deadly(*arguments):
        nonlocal calls
        is_journal = name == "replace" or len(arguments[1]) > 1  # not the pipe to the parent
        calls += is_journal
        if not is_journal or calls < moment:
            return original(*arguments)
        if kind == "write":
            file, data = arguments
            original(file, bytes(data)[: random.randrange(len(data))])
        elif kind == "after rename":
            original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(os, name, deadly)


def in_a_child(
    folder: Path, run_id: str, kind: str | None, rng: random.Random, usual: float
) -> tuple[int, bool]:
    """Train in a forked process; returns the last step it said was recorded, and whether it was killed."""
    receive, send = os.pipe()
    seed, delay = rng.randrange(2**31), rng.uniform(0.1, 0.9) * usual
    moment = rng.randint(1, STEPS) if kind == "write" else rng.randint(1, 8)
    pid = os.fork()
    if pid == 0:
        try:
            if kind not in (None, "timer"):
                die_within(kind, moment)
            random.seed(seed)
            train(folder, run_id, send)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    os.close(send)
    if kind == "timer":
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    steps = b""
    while part := os.read(receive, 1000):
        steps += part
    os.close(receive)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"{run_id} ended with {status}"
    return (steps[-1] if steps else 0), status != 0


def check_what_is_left(folder: Path, run_id: str, said: int) -> None:
    """Every step that was said to be recorded can be read, and the run is not taken for a whole one."""
    manifest = folder / run_id / storage.MANIFEST
    if said == 0 and not manifest.exists():
        return
    if is_complete(folder, run_id):
        return
    assert storage.status(folder / run_id) == "interrupted"
    if said:
        run = next(run for run in RunSet.load(folder, incomplete=True) if run.id == run_id)
        assert len(run) >= said, f"{run_id}: {said} steps were recorded, {len(run)} can be read"


def main(place: Path) -> None:
    torch.set_num_threads(1)
    Training().step()  # what torch imports at its first step, it need not import in every child
    rng = random.Random(0)
    alone, killed = place / "alone", place / "killed"
    started = time.perf_counter()
    in_a_child(alone, "run-0", None, rng, 0.0)
    usual = time.perf_counter() - started
    happened: list[list] = []
    number = 0
    while (kills := sum(was_killed for *_, was_killed in happened)) < KILLS:
        kind = KINDS[kills % len(KINDS)]
        said, was_killed = in_a_child(killed, f"run-{number}", kind, rng, usual)
        happened.append([f"run-{number}", kind, said, was_killed])
        check_what_is_left(killed, f"run-{number}", said)
        number += is_complete(killed, f"run-{number}")
    if not is_complete(killed, f"run-{number}"):
        in_a_child(killed, f"run-{number}", None, rng, usual)
    for other in range(1, number + 1):
        in_a_child(alone, f"run-{other}", None, rng, usual)
    different = [
        file.relative_to(alone).as_posix()
        for file in sorted(alone.rglob("*"))
        if file.is_file()
        and file.name not in (storage.MANIFEST, storage.LOCK)
        and file.read_bytes() != (killed / file.relative_to(alone)).read_bytes()
    ]
    resumed = [
        at for n in range(number + 1) for at in storage.read_manifest(killed / f"run-{n}")["resumed_at"]
    ]
    print(json.dumps({"happened": happened, "different": different, "resumed": resumed}))


def is_complete(folder: Path, run_id: str) -> bool:
    return (folder / run_id / storage.MANIFEST).exists() and storage.status(folder / run_id) == "complete"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
