"""Recording fine-tuning runs as they happen, whatever trains.

A plain PyTorch loop (with gradient accumulation, call ``run.consumes(ids)`` for each micro-batch and
``run.step()`` after the optimizer's step):

    recorder = RunRecorder("runs/copa", train=train_examples, test=test_examples)
    with recorder.run("seed-0", model=model, loss=per_example_loss, optimizer=optimizer) as run:
        for batch in loader:
            ...                                     # your own training step
            run.step(example_ids=batch["id"], train_loss=loss)

A loop that survives being killed: batches are found by their step, and the run goes on where its last
resumable checkpoint was, to the same bits:

    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    with recorder.run("seed-0", model=model, loss=per_example_loss, optimizer=optimizer,
                      resume=True, resume_every=20, state=state) as run:
        for step in range(run.start, n_steps):
            train_on(batches[step])
            run.step(example_ids=batches[step])

transformers: ``record_trainer(trainer, recorder, "seed-0")``, see :mod:`simfluence.recording.trainer`.
Lightning: ``RecordingCallback(recorder, "seed-0", loss=...)``, see :mod:`simfluence.recording.lightning`.
Under torchrun or accelerate each process runs the same lines, and says what its own batch holds. Batches that
accelerate dispatches from one process hold tensors only: let them have the numbers of their examples' rows.
"""

from simfluence.recording.active import ActiveRun
from simfluence.recording.evaluator import Evaluator, LossFunction
from simfluence.recording.notices import (
    FewEvaluationsWarning,
    IncompleteRunWarning,
    NonFiniteLossWarning,
    RecordingStoppedWarning,
    UntrainedStepWarning,
)
from simfluence.recording.recorder import RunRecorder
from simfluence.recording.weights import load_weights, weight_steps

__all__ = [
    "ActiveRun",
    "Evaluator",
    "FewEvaluationsWarning",
    "IncompleteRunWarning",
    "LossFunction",
    "NonFiniteLossWarning",
    "RecordingStoppedWarning",
    "RunRecorder",
    "UntrainedStepWarning",
    "load_weights",
    "weight_steps",
]
