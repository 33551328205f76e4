"""TracIn against its definition and against what plain gradient descent does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import network, points

from simfluence import Curriculum
from simfluence.attribution import Checkpoint, gradient_similarity, tracin
from simfluence.errors import RunDataError


def descended(objective: Any, train: Any, test: Any, curriculum: Curriculum, rate: float) -> Any:
    """Checkpoints before every step of plain SGD, and the test losses before and after all."""
    module, states = objective.module, []
    before = objective.losses(test).detach()
    for batch in curriculum:
        states.append({name: value.clone() for name, value in module.state_dict().items()})
        module.zero_grad()
        objective.losses([train[i] for i in batch]).mean().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= rate * parameter.grad
    checkpoints = [
        Checkpoint(step, rate, lambda module, state=state: module.load_state_dict(state))
        for step, state in enumerate(states)
    ]
    return checkpoints, before, objective.losses(test).detach()


@pytest.fixture
def run() -> Any:
    objective, train, test = network(), points(6), points(3, seed=1)
    curriculum = Curriculum.from_batches([[0, 1], [2, 3], [0, 0], [5, 1]], 6)
    return objective, train, test, curriculum, *descended(objective, train, test, curriculum, 1e-5)


def test_sums_over_checkpoints(run) -> None:
    objective, train, test, _, checkpoints, *_ = run
    chosen = [checkpoints[0], checkpoints[3]]
    expected = 0
    for checkpoint in chosen:
        with checkpoint.loaded(objective.module):
            expected = expected + 1e-5 * gradient_similarity(objective, train, test).scores
    found = tracin(objective, train, test, chosen, batch_size=2)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-12)
    assert (found.method, found.units, found.provenance["formula"]) == ("tracin", "loss", "TracIn-CP")
    assert found.provenance["steps"] == [0, 3]
    assert found.covers[0] == "0.weight"


def test_all_steps_add_up_to_what_training_took_off_the_losses(run) -> None:
    objective, train, test, curriculum, checkpoints, before, after = run
    found = tracin(objective, train, test, checkpoints, curriculum=curriculum)
    np.testing.assert_allclose(found.scores.sum(0), before - after, rtol=1e-3)
    assert (found.scores[4] == 0).all()  # never trained on
    assert (found.method, found.provenance["formula"]) == ("tracin", "TracIn")


def test_leaves_the_weights_and_goes_on_where_it_was(run, tmp_path) -> None:
    objective, train, test, curriculum, checkpoints, *_ = run
    weights = {name: value.clone() for name, value in objective.module.state_dict().items()}
    options: dict[str, Any] = {"folder": tmp_path / "parts", "curriculum": curriculum}
    first = tracin(objective, train, test, checkpoints[:2], **options).scores
    whole = tracin(objective, train, test, checkpoints, curriculum=curriculum).scores
    again = tracin(objective, train, test, checkpoints, **options).scores
    np.testing.assert_array_equal(again, whole)
    assert not np.array_equal(first, whole)
    assert len(list((tmp_path / "parts").iterdir())) == 4
    for name, value in objective.module.state_dict().items():
        assert torch.equal(value, weights[name])
    with pytest.raises(RunDataError, match="of other weights or examples"):
        tracin(objective, train[::-1], test, checkpoints, **options)


def test_misuse(run) -> None:
    objective, train, test, curriculum, checkpoints, *_ = run
    with pytest.raises(ValueError, match="at least one checkpoint"):
        tracin(objective, train, test, [])
    with pytest.raises(ValueError, match="counts once"):
        tracin(objective, train, test, checkpoints[:1] * 2)
    with pytest.raises(ValueError, match="over 6 training examples, got 5"):
        tracin(objective, train[:5], test, checkpoints, curriculum=curriculum)
    last = Checkpoint(4, 1e-5, lambda module: None)
    with pytest.raises(ValueError, match="no step follows"):
        tracin(objective, train, test, [last], curriculum=curriculum)
