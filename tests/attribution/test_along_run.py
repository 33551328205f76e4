"""Scores at several steps of a run, of a model of one's own, against what its steps did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import network, points

from simfluence import AutoSimulator, RunRecorder, RunSet, ScoresSimulator
from simfluence.attribution import (
    InfluenceScores,
    adam_similarity,
    recorded_checkpoints,
    scores_along_run,
)
from simfluence.errors import RunDataError
from simfluence.runs import TableFingerprints
from simfluence.simulators import DynamicsSimulator

STEPS = 12
ROWS = [{"id": f"example-{i}"} for i in range(6)]


def record(folder: Path, optimizer: type[torch.optim.Optimizer], lr: float, **options: Any) -> Any:
    """A run of the network over six points, in batches of two: (objective, points, folder of the set)."""
    objective, data = network(), points(6)

    def loss(model: Any, examples: list[Any]) -> torch.Tensor:
        return objective.losses([data[int(e["id"][-1])] for e in examples])

    made = optimizer(objective.module.parameters(), lr=lr, **options)
    recorder = RunRecorder(folder / "set", ROWS, ROWS)
    with recorder.run("a", model=objective.module, loss=loss, optimizer=made, keep_weights="every") as run:
        for step in range(STEPS):
            batch = [step % 6, (2 * step + 1) % 6]
            made.zero_grad()
            objective.losses([data[i] for i in batch]).mean().backward()
            made.step()
            run.step([ROWS[i]["id"] for i in batch])
    return objective, data, folder / "set"


def test_each_step_took_off_the_losses_what_the_scores_at_it_say(tmp_path: Path) -> None:
    """SGD at a rate at which the network changes, so that the scores at the start say something else."""
    objective, data, folder = record(tmp_path, torch.optim.SGD, 1e-3)
    run = RunSet.load(folder)[0]
    scores = scores_along_run(objective, data, data, folder)
    assert scores.scores.shape == (STEPS + 1, 6, 6)
    assert scores.steps == tuple(range(STEPS + 1))
    assert (scores.method, scores.weighing, scores.provenance["run"]) == ("gradient_step", "rate", "a")
    for step, batch in enumerate(run.curriculum):
        predicted = 1e-3 / 2 * scores.scores[step][batch].sum(0)
        np.testing.assert_allclose(predicted, run.loss[step] - run.loss[step + 1], rtol=0.02, atol=2e-6)
    assert not np.allclose(scores.scores[0], scores.scores[-1], rtol=0.02)


def test_in_adams_metric_at_each_of_the_weights(tmp_path: Path) -> None:
    objective, data, folder = record(tmp_path, torch.optim.AdamW, 0.05, eps=1e-6)
    before = {name: value.clone() for name, value in objective.module.state_dict().items()}
    scores = scores_along_run(objective, data, data[:6], folder, "a", steps=[0, 5, STEPS])
    assert scores.steps == (0, 5, STEPS)
    run = RunSet.load(folder)[0]
    for found, checkpoint in zip(
        scores.scores, recorded_checkpoints(folder / "a", run, scores.steps), strict=True
    ):
        with checkpoint.loaded(objective.module):
            expected = adam_similarity(objective, data, data, batch=2, eps=1e-6)
        np.testing.assert_allclose(found, expected.scores, rtol=1e-10)
    for name, value in objective.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_from_ones_own_training_to_a_simulator(tmp_path: Path) -> None:
    objective, data, folder = record(tmp_path, torch.optim.SGD, 1e-3)
    runs = RunSet.load(folder)
    scores = scores_along_run(objective, data, data, folder, steps=[0, 4, 8])
    scores.save(tmp_path / "scores.safetensors")
    loaded = InfluenceScores.load(tmp_path / "scores.safetensors")
    for simulator in (DynamicsSimulator, AutoSimulator):
        given, array, arrays = (
            simulator(one).fit(runs).simulate(runs.curricula, runs.initial_loss)
            for one in (loaded, scores.scores, list(scores.scores))
        )
        np.testing.assert_array_equal(given, array)
        np.testing.assert_array_equal(given, arrays)
    along = ScoresSimulator(loaded, calibrated=False).fit(runs)
    np.testing.assert_array_equal(along.scores_, loaded.scores)
    assert along.steps_.tolist() == [0, *loaded.steps[1:]]
    predicted = along.simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_allclose(
        predicted - predicted[:, :1], runs.loss - runs.loss[:, :1], rtol=0.2, atol=1e-4
    )
    other = replace(loaded, tables=TableFingerprints("0" * 32, loaded.tables.test))
    for simulator in (DynamicsSimulator, AutoSimulator, ScoresSimulator):
        with pytest.raises(RunDataError, match="these scores are of other training examples than the runs"):
            simulator(other).fit(runs)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    objective, data, folder = record(tmp_path, torch.optim.SGD, 1e-3)
    with pytest.raises(RunDataError, match=r"training examples are not .* 4 examples instead of 6"):
        scores_along_run(objective, data[:4], data, folder)
    with pytest.raises(
        RunDataError, match=r"test examples .* number 0 is called 'example-1' instead of 'example-0'"
    ):
        scores_along_run(objective, data, ROWS[1:] + ROWS[:1], folder)
    with pytest.raises(RunDataError, match="no weights were kept after step 13"):
        scores_along_run(objective, data, data, folder, steps=[0, 13])
    with pytest.raises(ValueError, match="tracin has one score of all checkpoints together"):
        scores_along_run(objective, data, data, folder, method="tracin")
    with pytest.raises(ValueError, match="steps must be 0 or more, ascending, each once"):
        scores_along_run(objective, data, data, folder, steps=[4, 0])
    with pytest.raises(ValueError, match=r"method\.factors=null"):
        scores_along_run(objective, data, data, folder, method="ekfac", factors="file")


def test_scores_at_steps_are_one_thing_in_memory_and_in_a_file(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(3, 5, 4))
    scores = InfluenceScores(array, "m", weighing="rate", steps=(0, 4, 9))
    scores.save(tmp_path / "scores.safetensors")
    loaded = InfluenceScores.load(tmp_path / "scores.safetensors")
    np.testing.assert_array_equal(loaded.scores, array)
    assert loaded.steps == (0, 4, 9)
    np.testing.assert_array_equal(loaded.mean().scores, array.mean(0))
    assert loaded.mean().steps == ()
    assert loaded.proponents(2, 1) == [array.mean(0)[:, 2].argmax()]
    assert loaded.opponents(2, 1) == [array.mean(0)[:, 2].argmin()]
    one = loaded.mean()
    assert one.mean() is one
    for steps in ((4, 0, 9), (0, 0, 9), (-1, 0, 9)):
        with pytest.raises(ValueError, match="0 or more, ascending, each once"):
            InfluenceScores(array, "m", steps=steps)
    with pytest.raises(
        ValueError, match=r"scores at 2 steps must be \[step, train, test\], got shape \(3, 5, 4\)"
    ):
        InfluenceScores(array, "m", steps=(0, 4))
    with pytest.raises(ValueError, match=r"must be \[train, test\], or have steps; got shape \(3, 5, 4\)"):
        InfluenceScores(array, "m")
    array[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="training example 2 for test example 3 is nan"):
        InfluenceScores(array, "m", steps=(0, 4, 9))
