"""Recording a Lightning training: one callback.

    recorder = RunRecorder("runs/rte", train=train_examples, test=test_examples)
    callback = RecordingCallback(recorder, "seed-0", loss=per_example_loss)
    Trainer(callbacks=[callback, ...]).fit(module, loader)          # or fit(..., ckpt_path="last")

``loss`` is handed the LightningModule and lists of test examples. Batches carry their examples' ids;
where they do not lie under "id", say where: ``example_ids=lambda batch: batch.meta["example"]``.
A fit that is resumed from a Lightning checkpoint cuts the run back to the checkpoint's step, which the
callback keeps in its state, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from simfluence import renamed
from simfluence.errors import RunDataError
from simfluence.recording.active import ActiveRun
from simfluence.recording.evaluator import LossFunction
from simfluence.recording.recorder import RunRecorder
from simfluence.recording.stream import StreamTable


class RecordingCallback(Callback):
    """Records a fit as a run.

    Parameters
    ----------
    recorder, run_id : where to, under which name.
    loss : (module, test examples) → loss of each.
    example_ids : batch → the ids of its examples; by default ``batch["id"]``. With a recorder over a stream,
        batch → its examples; by default the batch itself (:mod:`.stream`).
    options : of :meth:`RunRecorder.run` (``evaluate_every``, ``keep_weights``, ``config``, …).

    All micro-batches between two optimizer steps are one step's batch. Batches that were skipped
    (``on_train_batch_start`` returned -1, ``training_step`` returned None) belong to none, and neither do
    those whose gradients were set to zero before a step. In manual optimization a step ends with each batch
    in which an optimizer stepped; the parameter groups of all optimizers are recorded, one after the other. A
    fit that Lightning itself ends before its last step (early stopping) is complete.
    """

    def __init__(
        self,
        recorder: RunRecorder,
        run_id: str,
        *,
        loss: LossFunction,
        example_ids: Callable[[Any], Iterable[Any]] | None = None,
        **options: Any,
    ) -> None:
        renamed.check(options, renamed.RECORDING)
        self._recorder, self._run_id = recorder, run_id
        self._options = {"loss": loss, **options}
        of_batch = _whole if isinstance(recorder.train, StreamTable) else _ids_of
        self._example_ids = example_ids or of_batch
        self._run: ActiveRun | None = None
        self._losses: list[torch.Tensor] = []
        self._steps_before = 0

    @property
    def state_key(self) -> str:
        return f"simfluence run {self._run_id}"

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._run.steps if self._run is not None else self._steps_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps_before = state_dict["steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches  # infinite, if nothing but the user ends the fit
        options = {"total_steps": int(total) if 0 < total < float("inf") else None, **self._options}
        if self._steps_before:
            options["resume"] = self._steps_before
        self._losses.clear()
        self._global_step = trainer.global_step
        self._run = self._recorder.run(
            self._run_id, model=pl_module, optimizer=trainer.optimizers, **options
        ).__enter__()

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self._run is not None:  # gradients that are there still are of batches without a step
            self._run.discards()
            self._losses.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._run is None:
            return
        # without a loss there was no gradient, unless the module makes its gradients itself
        if batch is not None and (outputs or not pl_module.automatic_optimization):
            self._run.consumes(self._example_ids(batch))
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):  # Lightning has divided it by the number of micro-batches
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if trainer.global_step == self._global_step:
            return
        self._global_step = trainer.global_step
        mean = torch.stack(self._losses).mean() if self._losses else None
        self._losses.clear()
        self._run.step(train_loss=mean)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            self._run.ends_early()  # if it does, Lightning has decided so
        self._end(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end(exception)

    def _end(self, error: BaseException | None) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            self._steps_before = run.steps
            run.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


def _whole(batch: Any) -> Any:
    """Examples of a stream are known by their content."""
    return batch


def _ids_of(batch: Any) -> Iterable[Any]:
    if isinstance(batch, Mapping) and "id" in batch:
        ids: Iterable[Any] = batch["id"]
        return ids
    raise RunDataError(
        f"a batch says its examples' ids under 'id', but this {type(batch).__name__} does not; pass"
        " example_ids=, a function from a batch to the ids"
    )
