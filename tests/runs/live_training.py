"""Run by test_live: records runs a and b of 4 steps each, and takes a step for every line that it is sent."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "recording"))

from tiny import TEST, TRAIN, Training, per_example

from simfluence import RunRecorder

recorder = RunRecorder(sys.argv[1], TRAIN, TEST)
for name in "ab":
    training = Training(steps=4)
    options = {"model": training.model, "loss": per_example, "optimizer": training.optimizer}
    with recorder.run(name, **options, total_steps=4) as run:
        print("begun", flush=True)
        for _ in range(4):
            sys.stdin.readline()
            ids, loss = training.step()
            run.step(ids, train_loss=loss)
            print("stepped", flush=True)
    print("ended", flush=True)
