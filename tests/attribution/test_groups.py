"""Optimizers with groups of parameters: each parameter counts with its own rate and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import naive_gradients, network, points

from simfluence import RunRecorder, RunSet
from simfluence.attribution import (
    AttributionContext,
    LossesOnly,
    adam_similarity,
    attribute,
    gradient_similarity,
    recorded_checkpoints,
    tracin,
)
from simfluence.attribution.groups import relative_rates, setting_by_parameter
from simfluence.errors import RunDataError
from simfluence.runs import Run

STEPS = 8
FIRST, LAST = ["0.weight", "0.bias", "1.weight", "1.bias"], ["3.weight"]


def recorded(folder: Path, optimizer: type[torch.optim.Optimizer], **of_last: Any) -> Any:
    """A run whose last layer is a group of its own: (objective, examples, folder, run)."""
    objective, data = network(), points(4)
    module = objective.module
    groups = [
        {"params": [p for name, p in module.named_parameters() if name in FIRST]},
        {"params": [module[3].weight], **of_last},
    ]
    made = optimizer(groups, lr=1e-5)
    rows = [{"id": i} for i in range(4)]

    def loss(model: Any, examples: list[Any]) -> torch.Tensor:
        return objective.losses([data[e["id"]] for e in examples])

    recorder = RunRecorder(folder / "set", rows, rows)
    with recorder.run("a", model=module, loss=loss, optimizer=made, keep_weights="every") as run:
        for step in range(STEPS):
            made.zero_grad()
            objective.losses([data[step % 4]]).mean().backward()
            made.step()
            run.step([step % 4])
    return objective, data, folder / "set" / "a", RunSet.load(folder / "set")[0]


def context(objective: Any, data: Any, run: Run, folder: Path) -> AttributionContext:
    texts = [""] * len(data)
    return AttributionContext(
        objective, data, data, texts, texts, recorded_checkpoints(folder, run, [0]), str, batch=1,
        optimizer=run.optimizer, rates=lambda: relative_rates(run),
    )  # fmt: skip


@pytest.mark.parametrize("rate", [0.0, 1e-4])
def test_tracin_adds_up_to_what_training_took_off_the_losses(rate: float, tmp_path: Path) -> None:
    objective, data, folder, run = recorded(tmp_path, torch.optim.SGD, lr=rate)
    checkpoints = recorded_checkpoints(folder, run, range(STEPS))
    assert checkpoints[0].rates == {**dict.fromkeys(FIRST, 1e-5), "3.weight": rate}
    scores = tracin(objective, data, data, checkpoints, curriculum=run.curriculum)
    np.testing.assert_allclose(scores.scores.sum(0), run.loss[0] - run.loss[-1], rtol=1e-2)
    kept = {"folder": tmp_path / "kept", "curriculum": run.curriculum}
    tracin(objective, data, data, checkpoints, **kept)
    without = [replace(checkpoint, rates={}) for checkpoint in checkpoints]
    with pytest.raises(RunDataError, match="other weights or examples"):
        tracin(objective, data, data, without, **kept)


def test_a_step_of_sgd_with_rates_of_its_own(tmp_path: Path) -> None:
    objective, data, folder, run = recorded(tmp_path, torch.optim.SGD, lr=1e-4)
    scores = attribute(context(objective, data, run, folder), "gradient_step")
    predicted = (run.learning_rate[:, None] * scores.scores[[step % 4 for step in range(STEPS)]]).sum(0)
    np.testing.assert_allclose(predicted, run.loss[0] - run.loss[-1], rtol=2e-2)


def test_momenta_count_with_what_a_gradient_adds_to_all_steps(tmp_path: Path) -> None:
    objective, data, folder, run = recorded(tmp_path, torch.optim.SGD, momentum=0.9)
    found = attribute(context(objective, data, run, folder), "gradient_step").scores
    with recorded_checkpoints(folder, run, [0])[0].loaded(objective.module):
        first, last = (gradient_similarity(objective, data, data, parameters=p).scores for p in (FIRST, LAST))
    np.testing.assert_allclose(found, first + 10 * last)


def test_epsilons_of_adam_against_a_naive_loop(tmp_path: Path) -> None:
    objective, data, folder, run = recorded(tmp_path, torch.optim.Adam, lr=1e-4, eps=1e-2)
    found = attribute(context(objective, data, run, folder), "gradient_step").scores
    parameters = dict(objective.module.named_parameters())
    with recorded_checkpoints(folder, run, [0])[0].loaded(objective.module):
        g = naive_gradients(objective, data, parameters)
    of_last = torch.cat([torch.full((p.numel(),), name in LAST) for name, p in parameters.items()])
    rate, eps = torch.where(of_last, 10.0, 1.0), torch.where(of_last, 1e-2, 1e-8)
    expected = (g * rate / (g.square().mean(0).sqrt() + eps)) @ g.T
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_groups_that_are_alike_are_as_one(tmp_path: Path) -> None:
    objective, data, folder, run = recorded(tmp_path, torch.optim.Adam, weight_decay=0.1)
    assert set(relative_rates(run).values()) == {1.0}
    found = attribute(context(objective, data, run, folder), "gradient_step").scores
    with recorded_checkpoints(folder, run, [0])[0].loaded(objective.module):
        expected = adam_similarity(objective, data, data, batch=1).scores
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("setting", "name"), [("eps", "AdamW"), ("lr", "AdamW"), ("momentum", "SGD")])
def test_settings_of_unknown_groups_are_refused(setting: str, name: str, tmp_path: Path) -> None:
    """Earlier recordings have a list of the groups' values, and do not say whose they are."""
    objective, data, folder, run = recorded(tmp_path, torch.optim.SGD)
    run = replace(run, optimizer={"class": name, "lr": 1e-5, "eps": 1e-8} | {setting: [0.1, 0.2]})
    with pytest.raises(
        RunDataError, match=rf"different {setting}, \[0.1, 0.2\], and the recording does not say"
    ):
        attribute(context(objective, data, run, folder), "gradient_step")
    attribute(context(objective, data, run, folder), "gradient_dot")
    if setting == "lr":
        with pytest.raises(ValueError, match="does not say which parameters were in which"):
            tracin(objective, data, data, recorded_checkpoints(folder, run, [0]))


def test_rates_belong_to_dot_products() -> None:
    objective, data = network(), points(3)
    with pytest.raises(ValueError, match="rates go with similarity='dot'"):
        gradient_similarity(objective, data, data, similarity="cosine", rates={"3.weight": 1.0})
    found = gradient_similarity(
        LossesOnly(objective.module, objective.losses), data, data, rates={"3.weight": 2}
    )
    expected = 2 * gradient_similarity(objective, data, data, parameters=LAST).scores
    np.testing.assert_allclose(found.scores, expected)
    assert setting_by_parameter({"eps": 1e-8}, "eps") == {}
