"""What the README shows, runs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)

GOING_ON = """
state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
options = {"model": model, "loss": per_example_loss, "optimizer": optimizer, "state": state}
with recorder.run("seed-0", **options, resume=True, resume_every=20) as run:
    for step in range(run.start, n_steps):
        train_on(batches[step])
        run.step(example_ids=batches[step])
"""
TRAINER = """
from simfluence.recording.trainer import record_trainer
record_trainer(trainer, recorder, "seed-0")
trainer.train()
"""
LIGHTNING = """
from simfluence.recording.lightning import RecordingCallback
Trainer(callbacks=[RecordingCallback(recorder, "seed-0", loss=per_example_loss)]).fit(module, loader)
"""


def test_ten_lines_of_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(BLOCKS[0], {})
    assert re.search(r"verdict: \w+ \(skill 0\.9", capsys.readouterr().out)


def test_a_method_of_ones_own_in_the_benchmark(runs, capsys: pytest.CaptureFixture[str]) -> None:
    from simfluence import MeanTrajectory

    class MySimulator(MeanTrajectory):
        name = "mine"

    exec(BLOCKS[1], {"runs": runs, "MySimulator": MySimulator})
    assert re.search(r"\| mine +\|", capsys.readouterr().out)


def test_recording_your_own_fine_tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from simfluence import RunSet

    monkeypatch.chdir(tmp_path)
    examples = [{"id": i, "x": torch.full((2,), float(i)), "y": float(i)} for i in range(8)]
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def per_example_loss(model, examples):
        x = torch.stack([example["x"] for example in examples])
        return (model(x)[:, 0] - torch.tensor([example["y"] for example in examples])) ** 2

    def training_step(batch):
        loss = per_example_loss(model, batch["examples"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    loader = [{"id": [0, 1], "examples": examples[:2]}, {"id": [3, 5], "examples": examples[3:6:2]}]
    code = BLOCKS[2].replace("...  ", "loss = training_step(batch)  ")
    assert code != BLOCKS[2]
    names = {
        "train_examples": examples[:6],
        "test_examples": examples[6:],
        "model": model,
        "per_example_loss": per_example_loss,
        "optimizer": optimizer,
        "loader": loader,
        "training_step": training_step,
    }
    exec(code, names)
    run = RunSet.load("runs/mine")[0]
    assert [batch.tolist() for batch in run.curriculum] == [[0, 1], [3, 5]]
    assert run.loss.shape == (3, 2)


def test_going_on_after_a_kill(tmp_path: Path) -> None:
    from tiny import TEST, TRAIN, Training, per_example

    from simfluence import RunRecorder, RunSet

    def go(folder: str, stop: int | None = None) -> None:
        training = Training(steps=30)
        recorder = RunRecorder(tmp_path / folder, train=TRAIN, test=TEST)
        batches = [[example["id"] for example in TRAIN[i % 6 * 4 : i % 6 * 4 + 4]] for i in range(30)]
        rows = {example["id"]: example for example in TRAIN}
        taken = []

        def train_on(batch: list[str]) -> None:
            if len(taken) == stop:
                raise KeyboardInterrupt
            taken.append(batch)
            training.model.train()
            loss = per_example(training.model, [rows[i] for i in batch]).mean()
            training.optimizer.zero_grad()
            loss.backward()
            training.optimizer.step()
            training.scheduler.step()

        names = vars(training) | {
            "recorder": recorder, "per_example_loss": per_example, "batches": batches, "train_on": train_on,
            "n_steps": 30,
        }  # fmt: skip
        exec(GOING_ON, names)
        assert len(taken) == (10 if folder == "cut" else 30)  # steps 21 .. 30 again

    go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", stop=25)
    go("cut")
    cut, whole = RunSet.load(tmp_path / "cut")[0], RunSet.load(tmp_path / "whole")[0]
    assert (cut.loss == whole.loss).all()


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_a_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    datasets = pytest.importorskip("datasets")
    from test_trainer import collate, features, new_model
    from transformers import Trainer, TrainingArguments

    from simfluence import RunRecorder, RunSet

    train, test = features(12, 0, "bert"), features(4, 1, "bert")
    arguments = TrainingArguments(
        tmp_path / "out", num_train_epochs=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(
        new_model("bert"), arguments, data_collator=collate, train_dataset=datasets.Dataset.from_list(train)
    )
    exec(TRAINER, {"trainer": trainer, "recorder": RunRecorder(tmp_path / "runs", train=train, test=test)})
    assert RunSet.load(tmp_path / "runs").loss.shape == (1, 7, 4)


@pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*(Checkpoint directory|litlogger|tip).*")
def test_lightning(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    from test_lightning import Module, loader, loss
    from tiny import TEST, TRAIN

    from simfluence import RunRecorder, RunSet

    names = {
        "Trainer": partial(
            pl.Trainer, max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        ),
        "recorder": RunRecorder(tmp_path / "runs", train=TRAIN, test=TEST),
        "per_example_loss": loss,
        "module": Module(),
        "loader": loader(),
    }  # fmt: skip
    exec(LIGHTNING, names)
    assert RunSet.load(tmp_path / "runs").loss.shape == (1, 7, 6)


def test_one_run_and_its_gradients(tmp_path: Path) -> None:
    import numpy as np
    import torch

    from simfluence import RunRecorder, RunSet

    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3, generator=generator)
    points = torch.randn(30, 3, generator=generator)
    examples = [{"id": i, "x": x, "y": torch.sign(x @ truth)} for i, x in enumerate(points)]
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)

    def per_example_loss(model, examples):
        x, y = (torch.stack([example[key] for example in examples]) for key in "xy")
        return torch.nn.functional.softplus(-y * model(x)[:, 0])

    train, test = examples[:20], examples[20:]
    names = {"model": model, "per_example_loss": per_example_loss}
    names |= {"train_examples": train, "test_examples": test}
    start = {name: value.clone() for name, value in model.state_dict().items()}
    recorder, rng = RunRecorder(tmp_path, train=train, test=test), np.random.default_rng(0)
    for seed in range(8):
        model.load_state_dict(start)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        pool = rng.permutation(20)[:6]  # which differ: so do the runs
        with recorder.run(f"{seed}", model=model, loss=per_example_loss, optimizer=optimizer) as run:
            for batch in rng.choice(pool, (30, 2)):
                loss = per_example_loss(model, [train[i] for i in batch]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(example_ids=batch.tolist(), train_loss=float(loss.detach()))
    model.load_state_dict(start)
    runs = RunSet.load(tmp_path)
    names["runs"] = runs[:1]
    exec(BLOCKS[3], names)
    predicted = names["simulator"].simulate(runs[1:].curricula, runs[1:].initial_loss)
    errors = [
        np.square(guess - runs[1:].loss).mean() for guess in (predicted, runs[0].loss)
    ]  # or as that one went
    assert 1 - errors[0] / errors[1] > 0.35
