"""Recording a ``transformers.Trainer``: one call on the trainer as it is.

    recorder = RunRecorder("runs/rte", train=train_dataset, test=test_dataset)
    record_trainer(trainer, recorder, "seed-0")
    trainer.train()                             # or trainer.train(resume_from_checkpoint=True)

The trainer's sampling, batches, arguments and reports stay what they were. Row numbers travel with the
examples through the data loader and are taken out of a batch before the model sees it, which is why
``remove_unused_columns`` does not matter; micro-batches of one optimizer step become one step. Of a stream
whose examples are not known before, ``RunRecorder(…, train="stream")`` knows them by their content.

TRL's SFTTrainer is recorded likewise: make it first, then the recorder, with ``test=trainer.eval_dataset``,
which it has tokenized (and, with packing, ``eval_packing=False``). For packed rows see :mod:`.packing`.
So are its DPOTrainer and RewardTrainer, whose examples are pairs (:mod:`.preferences`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from simfluence import renamed
from simfluence.errors import RecordingError
from simfluence.recording.active import ActiveRun
from simfluence.recording.evaluator import LossFunction
from simfluence.recording.losses import model_loss
from simfluence.recording.preferences import preference_loss
from simfluence.recording.recorder import RunRecorder
from simfluence.recording.stream import StreamTable
from simfluence.recording.training_rows import (
    ROW,
    CollateByContent,
    CollateNumbered,
    CollateStreamed,
    Numbered,
    RowOrderWarning,
    held_rows,
    is_streamed,
)
from simfluence.runs.tables import ExampleTable, TableFingerprints

__all__ = ["NoScoresWarning", "RowOrderWarning", "record_trainer"]


class NoScoresWarning(UserWarning):
    """Scores were asked for, and cannot be had of this model, optimizer or data."""


def record_trainer(
    trainer: Trainer,
    recorder: RunRecorder,
    run_id: str,
    *,
    loss: LossFunction | None = None,
    example_ids: str | Sequence[Any] = "id",
    scores: bool = False,
    **options: Any,
) -> None:
    """Record what ``trainer.train()`` does as a run.

    Parameters
    ----------
    loss : (model, test examples) → loss of each; by default what the trainer's collator and model make
        of the examples, see :func:`~simfluence.recording.losses.model_loss` (classification, causal
        and sequence-to-sequence language models); of TRL's DPOTrainer and RewardTrainer the loss of each
        pair, see :func:`~simfluence.recording.preferences.preference_loss`.
    example_ids : the ids of the training data set's rows, or the column that has them; of a row that holds
        several examples, a list of theirs. Without such a column, rows are taken in the order of the
        recorder's training table, if there are as many; a RowOrderWarning says so, for it is wrong if the
        data set was shuffled. A streamed training set needs the column, unless the recorder's is
        ``train="stream"``: then an example without an id is known by the content of its row (in rows that the
        trainer packs, by the tokens of each example).
    scores : keep gradient scores of the weights before training beside the set
        (:mod:`simfluence.attribution.initial`), with which simulators need a single run. What they cost is
        printed first; where they cannot be had, a warning says why.
    options : of :meth:`RunRecorder.run` (``evaluate_every``, ``keep_weights``, ``config``, …);
        ``total_steps`` is the trainer's own. With ``trainer.train(resume_from_checkpoint=…)`` the run is
        cut back to the checkpoint's step and goes on from there.

    A step that a gradient scaler skipped is recorded with the learning rate 0 and no examples. A training
    that the trainer itself ends before its last step (early stopping) is complete.

    Raises
    ------
    RunDataError : training examples whose ids are not in the recorder's table.
    RecordingError : a streamed training set without ids; or a trainer that is recorded already.
    ValueError : a loss of DPO whose parts for single pairs are not known.
    """
    renamed.check(options, renamed.RECORDING)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, _TrainerRecording):
            raise RecordingError(
                f"this trainer is recorded already, as run {callback.run_id!r} (was a notebook's cell run"
                " again?): call record_trainer() once for each new Trainer"
            )
    packed = bool(getattr(trainer.args, "packing", False))
    stream, rows = None, None
    if isinstance(recorder.train, StreamTable):
        stream = _id_column(trainer, example_ids)
    elif (stream := _stream_column(trainer, example_ids)) is None:
        rows = held_rows(trainer.train_dataset, recorder.train, example_ids, packed)
    if loss is None:
        loss = preference_loss(trainer) or model_loss(trainer.data_collator)
    recording = _TrainerRecording(trainer, recorder, run_id, rows, stream, {"loss": loss, **options}, scores)
    trainer.add_callback(recording)
    trainer.get_train_dataloader = recording.numbering(trainer.get_train_dataloader)
    trainer.training_step = recording.noting(trainer.training_step)
    trainer.train = recording.closing(trainer.train)


class _TrainerRecording(TrainerCallback):
    """Opens the run as training begins, and follows it."""

    def __init__(
        self,
        trainer: Trainer,
        recorder: RunRecorder,
        run_id: str,
        rows: list[list[int]] | None,
        stream: str | None,
        options: Mapping[str, Any],
        scores: bool,
    ) -> None:
        self._trainer, self._recorder, self.run_id = trainer, recorder, run_id
        self._rows, self._stream, self._scores = rows, stream, scores
        self._by_content = isinstance(recorder.train, StreamTable)
        ids = [] if isinstance(recorder.train, StreamTable) else recorder.train.ids
        self._ids = [[example_id] for example_id in ids]  # of each row that a batch may name
        if rows is not None:
            self._ids = [[ids[row] for row in held] for held in rows]
        self._options = dict(options)
        self._run: ActiveRun | None = None
        self._losses: list[torch.Tensor] = []

    # ------------------------------------------------------------------ around the trainer's methods

    def numbering(self, get_train_dataloader: Callable[[], Any]) -> Callable[[], Any]:
        """The trainer's own data loader, its examples numbered."""

        def numbered() -> Any:
            outer = get_train_dataloader()
            loader = getattr(outer, "base_dataloader", outer)  # accelerate wraps torch's
            if not isinstance(loader, torch.utils.data.DataLoader):
                raise RecordingError(f"expected a torch data loader to follow, got {type(loader).__name__}")
            if self._by_content:
                packed = bool(getattr(self._trainer.args, "packing", False))
                loader.collate_fn = CollateByContent(loader.collate_fn, self._stream, packed)
                return outer
            if self._stream is not None:
                table = self._recorder.train
                assert isinstance(table, ExampleTable)
                loader.collate_fn = CollateStreamed(loader.collate_fn, table, self._stream)
                return outer
            # a data loader refuses to have its data set exchanged; its sampler was made for the same rows
            object.__setattr__(loader, "dataset", Numbered(loader.dataset))
            loader.collate_fn = CollateNumbered(loader.collate_fn)
            return outer

        return numbered

    def noting(self, training_step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Takes the row numbers out of each batch."""

        def noted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            numbers = inputs.pop(ROW)
            if self._run is not None and self._by_content:
                self._run.consumes(CollateByContent.read(numbers))
            elif self._run is not None:
                self._run.consumes([held for number in numbers.tolist() for held in self._ids[number]])
            loss = training_step(model, inputs, *args, **kwargs)
            self._losses.append(loss.detach())
            return loss

        return noted

    def closing(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """Marks the run when training ends by an error."""

        def closed(*args: Any, **kwargs: Any) -> Any:
            try:
                return train(*args, **kwargs)
            except BaseException as error:
                self._end(error)
                raise

        return closed

    # ------------------------------------------------------------------------------------ callbacks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        options = {"total_steps": state.max_steps, "config": _described(args), **self._options}
        if state.global_step:
            options["resume"] = state.global_step
        if self._run is not None:  # the trainer tries again with a smaller batch
            self._end(RuntimeError("the trainer began again"))
            options |= {"restart": True, "resume": False}
        self._losses.clear()
        run = self._recorder.run(
            self.run_id, model=self._trainer.model, optimizer=kwargs.get("optimizer"), **options
        )
        self._run = run.__enter__()
        if self._scores and not state.global_step:
            self._keep_scores(args)

    def _keep_scores(self, args: Any) -> None:
        """Scores of the weights before training, beside the set."""
        from simfluence.attribution.initial import keep_initial_scores  # all methods of attribution

        assert self._run is not None
        rows, train = self._rows or [], self._recorder.train
        place = {held[0]: number for number, held in enumerate(rows)}
        try:
            if isinstance(train, StreamTable) or not rows or any(len(held) != 1 for held in rows):
                raise ValueError("they need a training set of single examples, neither packed nor streamed")
            if args.world_size > 1:
                raise ValueError(f"they are computed by one process, not by {args.world_size}")
            if missing := len(train) - len(place):
                raise ValueError(f"{missing} of the recorder's training examples are not the trainer's")
            examples = [self._trainer.train_dataset[place[row]] for row in range(len(place))]
            keep_initial_scores(
                self._recorder.path,
                self._trainer.model,
                self._options["loss"],
                examples,
                self._recorder.test_examples,
                optimizer=self._run.optimizer,
                batch=args.train_batch_size * args.gradient_accumulation_steps,
                tables=TableFingerprints.of(train, self._recorder.test),
            )
        except (ValueError, RuntimeError) as error:
            warnings.warn(f"no scores are kept beside the set: {error}", NoScoresWarning, stacklevel=2)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run is not None:
            loss = torch.stack(self._losses).sum() if self._losses else None
            self._losses.clear()
            self._run.step(train_loss=loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run is not None:
            self._run.ends_early()  # if it does, the trainer has decided so
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


def _id_column(trainer: Trainer, example_ids: str | Sequence[Any]) -> str:
    """The field that may have the ids of examples that are known by their content else.

    Raises RecordingError for a list of ids, or where batches are dispatched to several processes.
    """
    if not isinstance(example_ids, str):
        raise RecordingError(
            "with train='stream' example_ids= names a field of the training set's rows; got a list of ids,"
            " for which the recorder needs the training examples: train=…"
        )
    config = trainer.accelerator.dataloader_config
    if (
        trainer.args.world_size > 1
        and config.dispatch_batches is not False
        and is_streamed(trainer.train_dataset)
    ):
        raise RecordingError(
            "one process reads the stream and dispatches batches to the others, which does not pass on what"
            " is known of the examples: set accelerator_config={'dispatch_batches': False}"
        )
    return example_ids


def _stream_column(trainer: Trainer, example_ids: str | Sequence[Any]) -> str | None:
    """The field that has the ids of a streamed training set; None for one with a length.

    Raises RecordingError for a stream without such a field, as far as can be seen from outside.
    """
    dataset = trainer.train_dataset
    if dataset is not None and not is_streamed(dataset):
        return None
    columns = getattr(dataset, "column_names", None)
    if dataset is None or not isinstance(example_ids, str) or (columns and example_ids not in columns):
        raise RecordingError(
            "the examples of a streamed training set have no row numbers: they are followed by their ids, in"
            f" a field that example_ids= names; got {example_ids!r}, and the fields {columns}"
        )
    return example_ids


def _described(args: Any) -> dict[str, Any]:
    """The trainer's arguments that say how the run was trained."""
    names = (
        "seed",
        "data_seed",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "max_grad_norm",
        "warmup_steps",
        "bf16",
        "fp16",
    )
    described = {name: getattr(args, name, None) for name in names}
    return {**described, "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", ""))}
