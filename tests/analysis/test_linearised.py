"""The linearised model against torch: its optimizers, and the training of models that are linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linearised import LinearisedModel, LinearisedSimulator, Update, linearise
from linearised.model import log_odds_right
from torch import nn

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import RunSet

FEATURES = 6
_x, _y = torch.randn(17, FEATURES + 1, generator=torch.Generator().manual_seed(0)).split([FEATURES, 1], 1)
EXAMPLES = list(zip(_x, torch.sign(_y[:, 0]), strict=True))
TRAIN, TEST = EXAMPLES[:12], EXAMPLES[12:]
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.2, "weight_decay": 0.05}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.05, "betas": (0.8, 0.99), "weight_decay": 0.1, "eps": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3}),
}


def losses_of(model: nn.Module):
    """Examples (x, y = ±1) → −log p of y, p = σ(y · output)."""

    def losses(batch) -> torch.Tensor:
        x, y = (torch.stack(parts) for parts in zip(*batch, strict=True))
        return nn.functional.softplus(-y * model(x)[:, 0])

    return losses


def make(width: int = 0) -> nn.Module:
    """A linear model, or one with a layer between."""
    torch.manual_seed(1)
    if not width:
        return nn.Linear(FEATURES, 1)
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, 1))


def linearised(width: int = 0, coordinates: int = 10**5) -> LinearisedModel:
    model = make(width)
    return linearise(model, losses_of(model), TRAIN, TEST, coordinates=coordinates)


def recorded(name: str, width: int = 0, runs: int = 8, **changed) -> RunSet:
    """Runs of twenty batches of three that torch trains, with a learning rate that falls."""
    kind, options = OPTIMIZERS[name][0], OPTIMIZERS[name][1] | changed
    rates = options["lr"] * np.linspace(1, 0.5, 20)
    batches, trajectories = np.random.default_rng(2).integers(0, len(TRAIN), (runs, 20, 3)), []
    for run in batches:
        model = make(width)
        optimizer, losses = kind(model.parameters(), **options), losses_of(model)
        trajectories.append([losses(TEST).detach().numpy()])
        for batch, rate in zip(run, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            losses([TRAIN[row] for row in batch]).mean().backward()
            optimizer.step()
            trajectories[-1].append(losses(TEST).detach().numpy())
    known = {"train": len(TRAIN), "learning_rate": rates, "optimizer": {"class": kind.__name__, **options}}
    return RunSet.from_arrays(batches, np.array(trajectories), **known)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_step_is_that_of_torchs_optimizer(name) -> None:
    kind, options = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(3)
    weights = nn.Parameter(torch.randn(2, 4, generator=generator))
    own, averages = weights.detach().clone(), (torch.zeros(2, 4), torch.zeros(2, 4))
    optimizer, update = kind([weights], **options), Update.of({"class": kind.__name__, **options})
    for step in range(1, 12):
        weights.grad = torch.randn(2, 4, generator=generator)
        update(own, weights.grad.clone(), averages, torch.full((2, 1), options["lr"]), step)
        optimizer.step()
        torch.testing.assert_close(own, weights.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_training_a_linear_model_is_predicted_exactly(name) -> None:
    """The log-odds of a logistic regression are linear in its weights, so nothing is approximated."""
    runs, model = recorded(name), linearised()
    assert runs.loss.std(0).max() > 0.1
    rates = np.stack([run.learning_rate for run in runs])
    losses = model.simulate(runs.curricula, runs.initial_loss, Update.of_runs(runs), rates)
    np.testing.assert_allclose(losses, runs.loss, rtol=1e-4, atol=1e-5)
    simulator = LinearisedSimulator(model).fit(runs[:5])
    short = Curriculum.from_batches(list(runs[6].curriculum)[:7], len(TRAIN))
    losses = simulator.simulate([runs[5].curriculum, short], runs.initial_loss[0], rates[0])
    np.testing.assert_allclose(losses[0], runs[5].loss, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(losses[1, :8], runs[6].loss[:8], rtol=2e-4, atol=2e-5)


def test_jacobians_are_differences_of_log_odds() -> None:
    model, found = make(32), linearised(32)
    np.testing.assert_allclose(found.counts, 1)  # all weights are taken
    direction = torch.randn(len(found.weights), generator=torch.Generator().manual_seed(4))

    def log_odds_at(way: float) -> np.ndarray:
        nn.utils.vector_to_parameters(torch.from_numpy(found.weights) + way * direction, model.parameters())
        return log_odds_right(losses_of(model)(TRAIN + TEST).detach().numpy())

    jacobian = np.concatenate([found.train_jacobian, found.test_jacobian])
    difference = (log_odds_at(5e-3) - log_odds_at(-5e-3)) / 1e-2
    np.testing.assert_allclose(jacobian @ direction.numpy(), difference, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(found.train_log_odds, log_odds_at(0.0)[: len(TRAIN)], rtol=1e-5, atol=1e-6)


def test_a_sample_of_the_weights_predicts_nearly_what_torch_trains() -> None:
    runs, sampled = recorded("adamw", 2000, lr=1e-4), linearised(2000, coordinates=3000)
    assert 2000 < len(sampled.weights) < 4000  # of 16 001
    rates = np.stack([run.learning_rate for run in runs])
    losses = sampled.simulate(runs.curricula, runs.initial_loss, Update.of_runs(runs), rates)
    change = runs.loss - runs.initial_loss[:, None]
    assert np.square(losses - runs.loss).sum() < 0.02 * np.square(change).sum()


def test_effects_beside_it_add_to_what_it_predicts() -> None:
    runs = recorded("adamw", 32, runs=24, lr=0.02)
    model, train, test = linearised(32, coordinates=20), runs[:16], runs[16:]  # much is left to effects
    errors = [np.square(train.loss.mean(0) - test.loss).mean()]
    for penalty in (np.inf, None):
        simulator = LinearisedSimulator(model, penalty).fit(train)
        losses = simulator.simulate(test.curricula, test.initial_loss)
        errors.append(np.square(losses - test.loss).mean())
        refitted = np.square(simulator.out_of_fold(train) - train.loss)[:, 1:].mean()
        assert simulator.error_ == pytest.approx(refitted, rel=0.1)
    assert errors[2] < 0.8 * errors[1] < 0.64 * errors[0]


def test_what_is_wrong_is_named() -> None:
    groups = [{"parameters": ["a"], "lr": 0.1}, {"parameters": ["b"], "lr": 0.2}]
    unknown = (
        {"class": "Lion"},
        {"class": "Adam", "amsgrad": True},
        {"class": "SGD", "momentum": [0, 1]},
        {"class": "SGD", "lr": 0.1, "groups": groups},
    )
    for optimizer in unknown:
        with pytest.raises(RunDataError, match=r"SGD, Adam or AdamW|one group"):
            Update.of(optimizer)
    model = make()
    with pytest.raises(ValueError, match="12 training and 4 test examples"):
        LinearisedSimulator(linearise(model, losses_of(model), TRAIN, TEST[1:])).fit(recorded("sgd"))
    with pytest.raises(ValueError, match="> 0"):
        linearise(model, lambda batch: losses_of(model)(batch) - 9, TRAIN, TEST)
    with pytest.raises(ValueError, match="nothing to linearise"):
        linearise(model.requires_grad_(False), losses_of(model), TRAIN, TEST)
