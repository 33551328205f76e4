"""Inner products in Adam's metric against the definition, and against what torch's Adam does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from attribution_models import CASES, naive_gradients, network, points

from simfluence.attribution import (
    AttributionContext,
    Checkpoint,
    adam,
    adam_similarity,
    attribute,
    gradient_similarity,
    selected_parameters,
    tracin,
)
from simfluence.errors import RunDataError


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_definition(case: str) -> None:
    """v is the mean square of a batch's gradient, over all batches that there are."""
    objective, examples = CASES[case]()
    gradients = naive_gradients(objective, examples, selected_parameters(objective.module))
    batches = [gradients[list(pair)].mean(0) for pair in itertools.product(range(len(examples)), repeat=2)]
    size = torch.stack(batches).square().mean(0).sqrt()
    expected = gradients @ (gradients[:2] / (size + 1e-8)).T
    found = adam_similarity(objective, examples, examples[:2], batch=2, batch_size=3)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6, atol=1e-9)
    assert (found.method, found.units, found.weighing) == ("gradient_adam", "loss / parameter", "rate")


def test_what_a_step_of_adam_takes_off_the_losses() -> None:
    """An Adam that has seen many batches at these weights, without momentum."""
    objective, train, test = network(), points(6), points(3, seed=1)
    module, batch, rate = objective.module, [1, 4, 4], 1e-7
    scores = adam_similarity(objective, train, test, batch=3).scores
    gradients = naive_gradients(objective, train, selected_parameters(module))
    squares = gradients.mean(0).square() + gradients.var(0, correction=0) / 3
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, betas=(0.0, 1 - 1e-9))
    for parameter, v in zip(
        module.parameters(), squares.split([p.numel() for p in module.parameters()]), strict=True
    ):
        state = {"step": torch.tensor(1e12), "exp_avg": torch.zeros_like(parameter)}
        optimizer.state[parameter] = state | {"exp_avg_sq": v.reshape(parameter.shape).clone()}
    before = objective.losses(test).detach()
    objective.losses([train[i] for i in batch]).mean().backward()
    optimizer.step()
    change = (objective.losses(test).detach() - before).numpy()
    np.testing.assert_allclose(-rate / 3 * scores[batch].sum(0), change, rtol=1e-4, atol=1e-12)


def test_scores_do_not_depend_on_how_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, train, test = network(), points(6), points(5, seed=1)
    expected = adam_similarity(objective, train, test, batch=4).scores
    monkeypatch.setattr(adam, "HELD_NUMBERS", 2 * sum(p.numel() for p in objective.module.parameters()))
    found = adam_similarity(objective, train, test, batch=4, batch_size=1).scores
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_part_of_those_that_are_trained_on() -> None:
    objective, train, test = network(), points(6), points(3, seed=1)
    everything = adam_similarity(objective, train, test, batch=4).scores
    part = adam_similarity(objective, train[1:3], test, batch=4, population=train).scores
    np.testing.assert_allclose(part, everything[1:3], rtol=1e-12)
    assert not np.allclose(adam_similarity(objective, train[1:3], test, batch=4).scores, part, rtol=0.01)


def test_over_checkpoints(tmp_path) -> None:
    objective, train, test = network(), points(6), points(3, seed=1)
    state = {name: 1.1 * value for name, value in objective.module.state_dict().items()}
    checkpoints = [
        Checkpoint(0, 0.1, lambda module: None),
        Checkpoint(7, 0.2, lambda module: module.load_state_dict(state)),
    ]
    expected = 0.1 * adam_similarity(objective, train, test, batch=4).scores
    with checkpoints[1].loaded(objective.module):
        expected = expected + 0.2 * adam_similarity(objective, train, test, batch=4).scores
    found = tracin(objective, train, test, checkpoints, adam_batch=4, folder=tmp_path)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-12)
    assert found.provenance["adam_batch"] == 4
    part = tracin(objective, train[:2], test, checkpoints, adam_batch=4, population=train)
    np.testing.assert_allclose(part.scores, expected[:2], rtol=1e-12)
    for options in (
        {},
        {"adam_batch": 3},
        {"adam_batch": 4, "population": train[:4]},
    ):  # none of them is kept
        with pytest.raises(RunDataError, match="other weights or examples"):
            tracin(objective, train, test, checkpoints, folder=tmp_path, **options)


def test_by_name() -> None:
    objective, train, test = network(), points(6), points(3, seed=1)
    checkpoints = [Checkpoint(0, 0.1, lambda module: None)]
    texts = [[""] * 6, [""] * 3]
    context = AttributionContext(objective, train, test, *texts, checkpoints, lambda example: [], batch=4)
    found = attribute(context, "gradient_adam")
    assert found.provenance == {"batch": 4, "eps": 1e-8, "step": 0}
    other = attribute(context, "gradient_adam", batch=2)
    np.testing.assert_array_equal(other.scores, adam_similarity(objective, train, test, batch=2).scores)
    unknown = AttributionContext(objective, train, test, *texts, checkpoints, lambda example: [])
    with pytest.raises(ValueError, match="the number of examples in a training step"):
        attribute(unknown, "gradient_adam")


@pytest.mark.parametrize("optimizer", ["AdamW", "torch.optim.sgd.SGD", "Lion", ""])
def test_in_the_metric_of_the_runs_optimizer(optimizer: str) -> None:
    objective, train, test = network(), points(6), points(3, seed=1)
    checkpoints = [Checkpoint(0, 0.1, lambda module: None)]
    said = {"class": optimizer, "eps": 1e-3} if optimizer else {}
    texts = [[""] * 6, [""] * 3]
    context = AttributionContext(
        objective, train, test, *texts, checkpoints, lambda example: [], batch=4, optimizer=said
    )
    if optimizer in ("Lion", ""):
        with pytest.raises(
            ValueError, match=f"{optimizer or 'an optimizer that was not recorded'}: choose gradient_adam"
        ):
            attribute(context, "gradient_step")
        return
    found = attribute(context, "gradient_step")
    if optimizer == "AdamW":
        expected, same = adam_similarity(objective, train, test, batch=4, eps=1e-3), "gradient_adam"
    else:
        expected, same = gradient_similarity(objective, train, test), "gradient_dot"
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-12)
    assert (found.method, found.provenance["same_as"]) == ("gradient_step", same)


def test_misuse() -> None:
    objective, train, test = network(), points(6), points(3, seed=1)
    unknown, endless = float("nan"), float("inf")
    wrong = [{"batch": b} for b in (0, unknown, endless)] + [
        {"batch": 4, "eps": e} for e in (0.0, unknown, endless)
    ]
    for options in wrong:
        with pytest.raises(ValueError, match="batch must be at least 1 and eps above 0"):
            adam_similarity(objective, train, test, **options)
    with pytest.raises(ValueError, match="got 0 for training and 3 to test"):
        adam_similarity(objective, [], test, batch=4)
    with pytest.raises(ValueError, match="drawn from 0"):
        adam_similarity(objective, train, test, batch=4, population=[])
