"""The Lightning callback: the same bits, accumulation, resuming through its state."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pl = pytest.importorskip("pytorch_lightning")

from tiny import TEST, TRAIN, bits, new_model, per_example  # noqa: E402

from simfluence.errors import RunDataError  # noqa: E402
from simfluence.recording import RunRecorder, UntrainedStepWarning  # noqa: E402
from simfluence.recording.fingerprint import weights_fingerprint  # noqa: E402
from simfluence.recording.lightning import RecordingCallback  # noqa: E402
from simfluence.runs import RunSet, storage  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(Checkpoint directory|litlogger|tip).*"),
]


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = new_model()

    def training_step(self, batch, batch_idx):
        return per_example(self.net, batch["examples"]).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def loss(module, examples):
    return per_example(module.net, examples)


def loader(ids=True):
    def collate(examples):
        return {"examples": examples} | ({"id": [e["id"] for e in examples]} if ids else {})

    return DataLoader(TRAIN, batch_size=4, shuffle=False, collate_fn=collate)


def fit(tmp_path, callbacks=(), ckpt_path=None, batches=None, module=None, **options):
    torch.manual_seed(1)
    module = module or Module()
    options = {"max_epochs": 2} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(module, batches or loader(), ckpt_path=ckpt_path)
    return module


def test_old_names_of_options_are_answered_with_the_new_ones(tmp_path):
    with pytest.raises(TypeError, match="'checkpoints' is now named 'keep_weights'"):
        RecordingCallback(RunRecorder(tmp_path / "set", TRAIN, TEST), "seed-0", loss=loss, checkpoints=1)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_fit_is_recorded_and_trains_to_the_same_bits(tmp_path, accumulation):
    options = {"accumulate_grad_batches": accumulation}
    bare = fit(tmp_path, **options)
    recorder = RunRecorder(tmp_path / "set", TRAIN, TEST)
    recorded = fit(tmp_path, [RecordingCallback(recorder, "seed-0", loss=loss, keep_weights=1)], **options)
    assert bits(recorded) == bits(bare)
    run = RunSet.load(tmp_path / "set")[0]
    size = 4 * accumulation
    epoch = [list(range(start, start + size)) for start in range(0, len(TRAIN), size)]
    assert [batch.tolist() for batch in run.curriculum] == 2 * epoch
    assert run.loss.shape == (len(run) + 1, len(TEST))
    assert run.initial_weights == weights_fingerprint(Module())
    recorded.eval()
    with torch.no_grad():
        expected = [loss(recorded, [example]).item() for example in TEST]
    np.testing.assert_allclose(run.loss[-1], expected, rtol=1e-5)
    np.testing.assert_allclose(run.learning_rate, 0.05)
    assert run.optimizer["class"] == "AdamW"
    # the mean loss of the first step's batch, under the first weights, dropout apart
    assert 0.3 < run.train_loss[0] < 3
    assert storage.read_manifest(tmp_path / "set" / "seed-0")["checkpoints"].keys() == {
        f"checkpoints/step-{len(run):06d}.safetensors"
    }


# ------------------------------------------------------------------- batches that do not train, and others


def recorded_batches(tmp_path, module, epochs=1, **options):
    """The batches recorded of a fit, by the number of their first example: batches are of four."""
    recorder = RunRecorder(tmp_path / "set", TRAIN, TEST)
    fit(
        tmp_path,
        [RecordingCallback(recorder, "run", loss=loss, keep_weights="every")],
        module=module,
        max_epochs=epochs,
        **options,
    )
    run = RunSet.load(tmp_path / "set")[0]
    assert storage.status(tmp_path / "set" / "run") == "complete"
    assert len(list((tmp_path / "set" / "run" / "checkpoints").iterdir())) == len(run) + 1
    return [[int(row) // 4 for row in batch[::4]] for batch in run.curriculum], run


class SkipsTheRest(Module):
    """Leaves the first epoch before its fourth batch."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch == 0 and batch_idx == 3 else None


@pytest.mark.parametrize(
    ("accumulation", "expected"),
    [
        (1, [[0], [1], [2], [0], [1], [2], [3], [4], [5]]),
        # the gradients of batch 2 are thrown away as the next epoch begins
        (2, [[0, 1], [0, 1], [2, 3], [4, 5]]),
    ],
)
def test_a_batch_that_was_never_trained_on_is_not_recorded(tmp_path, accumulation, expected):
    batches, _ = recorded_batches(tmp_path, SkipsTheRest(), epochs=2, accumulate_grad_batches=accumulation)
    assert batches == expected


class WithoutALoss(Module):
    """Has no loss for the third and fourth batch."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx in (2, 3) else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*returned `None`.*")
@pytest.mark.parametrize(
    ("accumulation", "untrained", "expected"),
    [(1, 2, [[0], [1], [4], [5]]), (2, 1, [[0, 1], [4, 5]]), (3, 0, [[0, 1], [4, 5]])],
)
def test_batches_without_a_loss_are_not_recorded(tmp_path, accumulation, untrained, expected):
    said = pytest.warns(UntrainedStepWarning) if untrained else contextlib.nullcontext()
    with said:
        batches, run = recorded_batches(tmp_path, WithoutALoss(), accumulate_grad_batches=accumulation)
    assert batches == expected
    assert storage.read_manifest(tmp_path / "set" / "run")["steps"] == len(run) + untrained


def test_accumulation_with_a_remainder_and_limited_batches(tmp_path):
    batches, run = recorded_batches(
        tmp_path, Module(), epochs=2, accumulate_grad_batches=2, limit_train_batches=5
    )
    assert batches == [[0, 1], [2, 3], [4]] * 2
    assert run.learning_rate.tolist() == [0.05] * 6


class ByHand(Module):
    """Two optimizers; the second one trains on every other batch."""

    automatic_optimization = False

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.net[0].parameters(), lr=0.1, momentum=0.9),
            torch.optim.AdamW(self.net[4].parameters(), lr=0.01),
        ]

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(per_example(self.net, batch["examples"]).mean())
        first.step()
        if batch_idx % 2:
            second.step()


def test_manual_optimization_with_two_optimizers(tmp_path):
    batches, run = recorded_batches(tmp_path, ByHand())
    assert batches == [[number] for number in range(6)]
    np.testing.assert_allclose(run.group_rates, [[0.1, 0.0], [0.1, 0.01]] * 3)
    assert [group["class"] for group in run.optimizer["groups"]] == ["SGD", "AdamW"]
    assert [group["parameters"] for group in run.optimizer["groups"]] == [
        ["net.0.weight", "net.0.bias"],
        ["net.4.weight", "net.4.bias"],
    ]


class AccumulatesByHand(Module):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(per_example(self.net, batch["examples"]).mean())
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


def test_manual_optimization_with_accumulation(tmp_path):
    assert recorded_batches(tmp_path, AccumulatesByHand())[0] == [[0, 1, 2], [3, 4, 5]]


def test_a_fit_that_is_stopped_early_is_complete(tmp_path):
    class Enough(Module):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = batch_idx == 1

    assert recorded_batches(tmp_path, Enough(), epochs=3, min_epochs=0)[0] == [[0], [1]]


class Stop(pl.Callback):
    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.after:
            raise KeyboardInterrupt


def test_resuming_through_the_callbacks_state(tmp_path):
    def saving(folder):
        return pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=6, save_top_k=-1)

    def recording(folder):
        return RecordingCallback(RunRecorder(folder, TRAIN, TEST), "seed-0", loss=loss)

    options = {"enable_checkpointing": True, "max_epochs": 2}
    fit(tmp_path, [recording(tmp_path / "whole"), saving(tmp_path / "c1")], **options)
    whole = RunSet.load(tmp_path / "whole")[0]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, [Stop(8), recording(tmp_path / "cut"), saving(tmp_path / "c2")], **options)
    folder = tmp_path / "cut" / "seed-0"
    assert storage.status(folder) == "interrupted"
    (checkpoint,) = (tmp_path / "c2").glob("*.ckpt")
    torch.manual_seed(0)
    fit(tmp_path, [recording(tmp_path / "cut"), saving(tmp_path / "c2")], ckpt_path=checkpoint, **options)
    assert storage.read_manifest(folder)["resumed_at"] == [6]
    resumed = RunSet.load(tmp_path / "cut")[0]
    assert resumed.curriculum == whole.curriculum
    np.testing.assert_array_equal(resumed.loss[:7], whole.loss[:7])
    assert np.isfinite(resumed.loss).all()


def test_errors(tmp_path):
    recorder = RunRecorder(tmp_path / "set", TRAIN, TEST)
    with pytest.raises(RunDataError, match="example_ids=, a function"):
        fit(tmp_path, [RecordingCallback(recorder, "seed-0", loss=loss)], batches=loader(ids=False))
    assert storage.status(tmp_path / "set" / "seed-0") == "failed"
    given = RecordingCallback(
        recorder, "seed-1", loss=loss, example_ids=lambda batch: [e["id"] for e in batch["examples"]]
    )
    fit(tmp_path, [given], batches=loader(ids=False), max_epochs=1)
    assert len(RunSet.load(tmp_path / "set", incomplete=True)[1]) == 6
