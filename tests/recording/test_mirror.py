"""Mirrors of recorded losses show what is recorded, and never hurt the recording."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TEST, TRAIN, Training, per_example

from simfluence import RunRecorder, RunSet
from simfluence.recording import mirror
from simfluence.recording.mirror import MirrorWarning
from simfluence.runs import Run


def record(folder: Path, tool: str | None, *, steps: int = 6, **options: Any) -> Run:
    recorder = RunRecorder(folder, train=TRAIN, test=TEST, mirror=tool)
    training = Training(steps=steps)
    about: dict[str, Any] = {"optimizer": training.optimizer, "evaluate_every": 2, "config": {"lr": 0.05}}
    with recorder.run("seed-0", model=training.model, loss=per_example, **about, **options) as run:
        for _ in range(steps):
            ids, loss = training.step()
            run.step(example_ids=ids, train_loss=loss)
    return RunSet.load(folder)[0]


def expected(run: Run) -> dict[str, list[tuple[int, float]]]:
    """tag → (step, value) of everything that a mirror is to show."""
    rows = {f"g{g}": [row for row, test in enumerate(TEST) if test["group"] == f"g{g}"] for g in range(3)}
    steps = [int(step) for step in run.evaluated]
    found = {"test/loss": list(zip(steps, run.loss.mean(1), strict=True))}
    for group, of in rows.items():
        found[f"test/loss/{group}"] = list(zip(steps, run.loss[:, of].mean(1), strict=True))
    found["train/loss"] = list(enumerate(run.train_loss, start=1))
    found["train/learning_rate"] = list(enumerate(run.learning_rate, start=1))
    return found


class Fake(types.ModuleType):
    """A client as wandb and trackio have it: init(…) → run, run.log(values, step=…), run.finish()."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("fake")
        self.fails, self.logged, self.about = fails, [], {}
        self.finished: list[dict[str, Any]] = []

    def init(self, **about: Any) -> Fake:
        self._do("init")
        self.about = about
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._do("log")
        self.logged.append((step, values))

    def finish(self, **how: Any) -> None:
        self._do("finish")
        self.finished.append(how)

    def _do(self, what: str) -> None:
        np.random.rand()  # noqa: NPY002 (a client may draw from the user's random state)
        if what == self.fails:
            raise ConnectionError("no route to the tool")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Fake:
    client = Fake(getattr(request, "param", ""))
    for tool in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, tool, client)
    monkeypatch.setattr(mirror, "_is_installed", lambda tool: True)
    return client


@pytest.mark.parametrize("tool", ["wandb", "trackio"])
def test_clients_are_given_what_is_recorded(fake: Fake, tool: str, tmp_path: Path) -> None:
    run = record(tmp_path / "mine", tool)
    assert {"project": "mine", "name": "seed-0", "config": {"lr": 0.05}}.items() <= fake.about.items()
    for tag, values in expected(run).items():
        logged = [(step, given[tag]) for step, given in fake.logged if tag in given]
        np.testing.assert_allclose(logged, values, rtol=1e-6)
    assert [step for step, _ in fake.logged] == list(range(7))
    assert fake.finished == ([{"exit_code": 0}] if tool == "wandb" else [{}])


@pytest.mark.parametrize("fake", ["init", "log", "finish"], indirect=True)
def test_a_mirror_that_fails_is_said_once_and_the_recording_is_the_same(fake: Fake, tmp_path: Path) -> None:
    alone = record(tmp_path / "alone", None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = record(tmp_path / "mirrored", "wandb")
    (one,) = [warning for warning in said if warning.category is MirrorWarning]
    assert "ConnectionError: no route to the tool; it is recorded as before" in str(one.message)
    assert run.fingerprint == alone.fingerprint
    assert run.status == "complete"


def test_a_mirror_changes_nothing_in_the_training(fake: Fake, tmp_path: Path) -> None:
    """Though the client draws random numbers."""
    assert record(tmp_path / "a", None).fingerprint == record(tmp_path / "b", "trackio").fingerprint


def test_a_run_that_fails_ends_its_mirror_as_failed(fake: Fake, tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, train=TRAIN, test=TEST, mirror="wandb")
    training = Training()
    options = {"model": training.model, "loss": per_example, "optimizer": training.optimizer}
    with pytest.raises(KeyboardInterrupt), recorder.run("cut-off", **options):
        raise KeyboardInterrupt
    assert fake.finished == [{"exit_code": 1}]


def test_what_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mirror must be one of 'tensorboard', 'wandb', 'trackio'"):
        RunRecorder(tmp_path, train=TRAIN, test=TEST, mirror="tensorbord")  # type: ignore[arg-type]
    monkeypatch.setattr(mirror, "_is_installed", lambda tool: False)
    message = r"mirror='wandb' needs the package wandb: pip install 'simfluence\[wandb\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        RunRecorder(tmp_path, train=TRAIN, test=TEST, mirror="wandb")
    assert not list(tmp_path.iterdir())


def test_losses_that_are_not_finite_are_left_out_of_means() -> None:
    assert mirror._mean(np.array([1.0, np.nan, 3.0])) == 2
    assert np.isnan(mirror._mean(np.array([np.inf])))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_what_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = record(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "seed-0"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(expected(run))
    for tag, values in expected(run).items():
        read = [(event.step, event.value) for event in events.Scalars(tag)]
        np.testing.assert_allclose(read, values, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_goes_on_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = RunRecorder(tmp_path, train=TRAIN, test=TEST, mirror="tensorboard")
    for stop in (5, 8):
        training = Training(steps=8)
        options = {"model": training.model, "loss": per_example, "state": training.state}
        options |= {"optimizer": training.optimizer, "resume": True, "resume_every": 4}
        try:
            with recorder.run("seed-0", **options) as run:
                for step in range(run.start, 8):
                    if step == stop:
                        raise KeyboardInterrupt
                    ids, loss = training.step()
                    run.step(example_ids=ids, train_loss=loss)
        except KeyboardInterrupt:
            assert stop == 5
    events = EventAccumulator(str(tmp_path / "tensorboard" / "seed-0"))
    events.Reload()
    recorded = RunSet.load(tmp_path)[0]
    read = [(event.step, event.value) for event in events.Scalars("test/loss")]
    np.testing.assert_allclose(read, list(enumerate(recorded.loss.mean(1))), rtol=1e-6)
