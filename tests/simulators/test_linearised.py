"""Linearised training against torch's optimizers and against models that are linear indeed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from simfluence.attribution import LossesOnly, adam_similarity, gradient_similarity, linearise
from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import RunSet
from simfluence.simulators import AutoSimulator, EffectsSimulator, Tangent, load_simulator
from simfluence.simulators.design import smooth
from simfluence.simulators.offset import offset
from simfluence.simulators.tangent import Update, log_odds, recorded_update

N_TRAIN, N_TEST, FEATURES = 12, 5, 6
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.2, "weight_decay": 0.05}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.05, "betas": (0.8, 0.99), "weight_decay": 0.1, "eps": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3}),
}


def losses_of(model: nn.Module):
    """−log p of labels ±1, p = σ(y · score)."""

    def losses(examples) -> torch.Tensor:
        x, y = (torch.stack(parts) for parts in zip(*examples, strict=True))
        return nn.functional.softplus(-y * model(x)[:, 0])

    return losses


@pytest.fixture
def examples() -> tuple[list, list]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_TRAIN + N_TEST, FEATURES, generator=generator)
    y = torch.sign(torch.randn(N_TRAIN + N_TEST, generator=generator))
    both = list(zip(x, y, strict=True))
    return both[:N_TRAIN], both[N_TRAIN:]


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(FEATURES, 1)


def curved() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 1))


def training(model, examples, batches, kind, options, test=None, found=None):
    """Trains in place, yielding before the first step and after each; appends test losses to ``found``."""
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = kind(model.parameters(), **options)
    losses = losses_of(model)

    def note() -> None:
        if found is not None:
            with torch.no_grad():
                found.append(losses(test).numpy())

    note()
    yield 0
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        losses([examples[i] for i in batch]).mean().backward()
        optimizer.step()
        note()
        yield step + 1
    model.load_state_dict(initial)


def recorded(make, examples, name: str, runs: int = 8, steps: int = 20, **other) -> RunSet:
    """Really trained runs of a model."""
    rng = np.random.default_rng(2)
    train, test = examples
    kind, options = OPTIMIZERS[name]
    options = options | other
    batches = rng.integers(0, N_TRAIN, (runs, steps, 3))
    losses = []
    for batch in batches:
        found: list = []
        for _ in training(make(), train, batch, kind, options, test, found):
            pass
        losses.append(np.stack(found))
    optimizer = {"class": kind.__name__, **{k: list(v) if k == "betas" else v for k, v in options.items()}}
    return RunSet.from_arrays(batches, np.stack(losses), train=N_TRAIN, optimizer=optimizer)


def of(make, examples, **options) -> Tangent:
    model = make()
    return linearise(model, losses_of(model), *examples, coordinates=10_000, **options)


def along(make, examples, runs: RunSet, name: str, numbers=(0, 1), **options) -> Tangent:
    model = make()
    kind, settings = OPTIMIZERS[name]
    settings = settings | {"lr": runs[0].optimizer["lr"]}
    paths = {
        runs[r].id: training(model, examples[0], list(runs[r].curriculum), kind, settings) for r in numbers
    }
    return linearise(model, losses_of(model), *examples, coordinates=10_000, paths=paths, **options)


# ------------------------------------------------------------------------------------ exact cases


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_rule_is_torchs(name) -> None:
    kind, options = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(3)
    weights = nn.Parameter(torch.randn(2, 4, generator=generator))
    mine = weights.detach().clone()
    optimizer = kind([weights], **options)
    update, state = Update.of({"class": kind.__name__, **options}), [torch.zeros(2, 4), torch.zeros(2, 4)]
    for step in range(1, 12):
        weights.grad = torch.randn(2, 4, generator=generator)
        update(mine, weights.grad.clone(), state, options["lr"], step)
        optimizer.step()
        torch.testing.assert_close(mine, weights.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_training_a_linear_model_is_simulated_exactly(examples, name) -> None:
    """Log-odds of a logistic regression are linear in its weights, so nothing is approximated."""
    runs = recorded(linear, examples, name)
    update, rates = recorded_update(runs)
    simulated = of(linear, examples).simulate(runs.curricula, runs.initial_loss, update, rates)
    assert runs.loss.std(0).max() > 0.1
    np.testing.assert_allclose(simulated, runs.loss, atol=4e-3)  # float16 Jacobians


def test_jacobians_are_those_of_log_odds(examples) -> None:
    model = curved()
    found = of(curved, examples)
    direction = torch.randn(found.path.shape[2], generator=torch.Generator().manual_seed(4))
    jacobian = found.jacobian[0, 0].astype(float) * found.unit
    np.testing.assert_allclose(found.weights, 1)  # all of them are taken

    def odds(way: float) -> np.ndarray:
        nn.utils.vector_to_parameters(
            torch.from_numpy(found.path[0, 0]) + way * direction, model.parameters()
        )
        with torch.no_grad():
            return log_odds(losses_of(model)([*examples[0], *examples[1]]).numpy())

    difference = (odds(5e-3) - odds(-5e-3)) / 1e-2
    np.testing.assert_allclose(jacobian @ direction.numpy(), difference, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(found.log_odds[0, 0], odds(0.0), rtol=1e-5, atol=1e-6)


def test_a_sample_of_the_weights_says_nearly_the_same(examples) -> None:
    def wide() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(FEATURES, 2000), nn.Tanh(), nn.Linear(2000, 1))

    runs = recorded(wide, examples, "adamw", lr=1e-4, runs=3)
    model = wide()
    sampled = linearise(model, losses_of(model), *examples, coordinates=3000)
    assert 2000 < len(sampled.weights) < 4000  # of 16 001
    assert sampled.weights.sum() == pytest.approx(16_001, rel=0.1)
    update, rates = recorded_update(runs)
    simulated = sampled.simulate(runs.curricula, runs.initial_loss, update, rates)
    change, true = (losses - runs.initial_loss[:, None] for losses in (simulated, runs.loss))
    assert np.square(change - true).sum() < 0.02 * np.square(true).sum()


def test_along_its_own_path_a_run_is_simulated_exactly(examples) -> None:
    """However far it goes: nothing is left to linearise. With few points, gradients are interpolated."""
    runs = recorded(curved, examples, "adamw", lr=0.02)
    update, rates = recorded_update(runs)
    given = (runs[:1].curricula, runs[:1].initial_loss, update, rates)
    error = []
    for points in (range(21), (0, 10, 20), (0,)):
        both = along(curved, examples, runs, "adamw", points=points, test_losses={runs[0].id: runs[0].loss})
        assert both.runs == (runs[0].id, runs[1].id)
        np.testing.assert_allclose(both.log_odds[0, :, N_TRAIN:], log_odds(runs[0].loss), atol=1e-4)
        only = {name: v[[0, 0]] if len(v) == 2 else v for name, v in both.arrays().items()}
        simulated = Tangent.restored(only, both.plain()).simulate(*given)
        error.append(np.square(simulated - runs[:1].loss).mean() / runs[:1].loss.var(1).mean())
    assert error[0] < 1e-4
    assert error[0] < 0.01 * min(error[1:])


def test_a_reference_does_not_help_itself(examples) -> None:
    runs = recorded(curved, examples, "adamw", lr=0.02)
    update, rates = recorded_update(runs)
    given = (runs[:1].curricula, runs[:1].initial_loss, update, rates)
    both = along(curved, examples, runs, "adamw", points=(0, 10, 20))
    odds = both.log_odds.copy()
    odds[0] += 1e6  # only the reference that is run 0 itself
    spoilt = Tangent.restored({**both.arrays(), "log_odds": odds}, both.plain())
    np.testing.assert_array_equal(
        both.simulate(*given, runs=[runs[0].id]), spoilt.simulate(*given, runs=[runs[0].id])
    )
    assert not np.allclose(both.simulate(*given), spoilt.simulate(*given))


# ------------------------------------------------------------------------------- in the simulators


def naive_slope(product: np.ndarray, square: np.ndarray) -> np.ndarray:
    window = max(square.shape[1] // 6, 1)
    top = smooth(product.sum(0) + square.mean(0), window)
    return np.clip(top / smooth(square.sum(0) + square.mean(0), window), 0, 2)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_its_scores_are_those_of_gradients(examples, name) -> None:
    """∇L(z) = −(1 − p_z) J_z, at the start; what the optimizer divides by is in them."""
    train, test = examples
    model = curved()
    kind, options = OPTIMIZERS[name]
    update = Update.of({"class": kind.__name__, **options})
    found = linearise(model, losses_of(model), train, test, coordinates=10**6).scores(update, batch=4)
    objective = LossesOnly(model, losses_of(model))
    if update.adam:
        expected = adam_similarity(objective, train, test, batch=4, eps=update.eps).scores
    else:
        expected = gradient_similarity(objective, train, test).scores
    wrong = -np.expm1(-losses_of(model)(test).detach().numpy())
    np.testing.assert_allclose(found, expected / wrong, rtol=5e-3, atol=1e-3 * np.abs(found).max())


def test_offsets_are_the_regression_on_what_is_foretold() -> None:
    rng = np.random.default_rng(5)
    foretold, grid = rng.normal(size=(4, 13, 3)), np.arange(0, 13, 2)
    losses = 0.7 * foretold[:, grid] + 0.1 * rng.normal(size=(4, 7, 3)) + rng.normal(size=(1, 7, 3))
    found = offset(list(foretold), list(losses), grid)
    mean = losses.mean(0)
    np.testing.assert_allclose(found.average, foretold.mean(0))
    product, square = np.zeros((2, 4, 7))
    for r in range(4):
        for point, t in enumerate(grid):
            for z in range(3):
                deviation = foretold[r, t, z] - foretold[:, t, z].mean()
                product[r, point] += deviation * (losses[r, point, z] - mean[point, z])
                square[r, point] += deviation**2
    np.testing.assert_allclose(found.slope, naive_slope(product, square))
    for r in range(4):
        others = [s for s in range(4) if s != r]
        deviation = foretold[r, grid] - foretold[:, grid].mean(0)
        expected = naive_slope(product[others], square[others])[:, None] * deviation
        np.testing.assert_allclose(found.left_out[r], expected)
        np.testing.assert_allclose(found.runs[r], found.slope[:, None] * deviation)


def skill(simulator, train: RunSet, test: RunSet) -> float:
    simulated = simulator.simulate(test.curricula, test.initial_loss)
    mean = train.loss.mean(0)
    return float(1 - np.square(simulated - test.loss).mean() / np.square(mean - test.loss).mean())


@pytest.mark.parametrize("train", [1, 2, 5])
def test_few_runs_suffice(examples, train) -> None:
    runs = recorded(curved, examples, "adamw", lr=0.01)
    fit = AutoSimulator(tangent=of(curved, examples)).fit(runs[:train])
    assert skill(fit, runs[:train], runs[5:]) > 0.75
    assert fit.settings_["offset"] == "tangent"


def test_a_tangent_that_misleads_is_dropped(examples) -> None:
    runs = recorded(curved, examples, "adamw", lr=0.01)
    right = of(curved, examples)
    wrong = np.random.default_rng(6).permuted(right.jacobian, axis=2)
    misled = Tangent.restored({**right.arrays(), "jacobian": wrong}, right.plain())
    fit = AutoSimulator(tangent=misled).fit(runs[:6])
    assert skill(fit, runs[:6], runs[6:]) > skill(AutoSimulator().fit(runs[:6]), runs[:6], runs[6:]) - 0.1


def test_left_out_runs_are_foretold_by_the_others(examples) -> None:
    """The leave-one-run-out error is near the one of really leaving runs out."""
    runs = recorded(curved, examples, "adamw", lr=0.01)
    make = EffectsSimulator(tangent=of(curved, examples), penalty=0.1, link="log_odds")
    errors = []
    for r in range(len(runs)):
        others = RunSet([run for run in runs if run.id != runs[r].id], runs.train, runs.test)
        simulated = make.fit(others).simulate([runs[r].curriculum], runs[r].initial_loss)
        errors.append(np.square(simulated[0, 1:] - runs[r].loss[1:]).mean())
    assert make.fit(runs).error_ == pytest.approx(np.mean(errors), rel=0.3)


def test_lengths_validation_and_saving(examples, tmp_path) -> None:
    runs = recorded(curved, examples, "adamw", lr=0.01)
    fit = AutoSimulator(tangent=of(curved, examples), max_rows=60).fit(runs[:5], runs[5:6])
    short, long = Curriculum.from_batches(list(runs[0].curriculum)[:7], N_TRAIN), runs[1].curriculum
    losses = fit.simulate([short, long], runs.initial_loss[:2])
    assert np.isnan(losses[0, len(short) + 1 :]).all()
    assert np.isfinite(losses[1]).all()
    fit.save(tmp_path / "auto")
    loaded = load_simulator(tmp_path / "auto")
    np.testing.assert_array_equal(loaded.simulate([short, long], runs.initial_loss[:2]), losses)
    again = loaded.refitted(runs[:4]).simulate([long], runs.initial_loss[0])
    assert np.isfinite(again).all()


def test_its_scores_are_scores_of_auto(examples, tmp_path) -> None:
    """From four runs on; a loaded simulator is fitted again with the same ones."""
    runs, known = recorded(curved, examples, "adamw", lr=0.01), of(curved, examples)
    expected = known.scores(recorded_update(runs)[0], np.median(runs[0].curriculum.batch_sizes))
    given = np.ones((N_TRAIN, N_TEST))
    assert len(AutoSimulator(given, tangent=known).fit(runs[:3]).scores_) == 1
    fit = AutoSimulator(given, tangent=known).fit(runs[:5])
    assert len(fit.scores_) == 2
    assert np.corrcoef(fit.scores_[1].ravel(), expected.ravel())[0, 1] == pytest.approx(1)
    assert any("replayed" in change for change in fit.selection["change"])
    fit.save(tmp_path / "auto")
    loaded = load_simulator(tmp_path / "auto")
    again = loaded.fit(runs[:5]).simulate(runs.curricula[5:], runs.initial_loss[5:])
    expected = fit.simulate(runs.curricula[5:], runs.initial_loss[5:])
    np.testing.assert_allclose(again, expected, rtol=1e-6)


def test_a_tangent_saved_and_loaded(examples, tmp_path) -> None:
    found = of(curved, examples)
    found.save(tmp_path / "tangent")
    loaded = Tangent.load(tmp_path / "tangent")
    assert loaded.plain() == found.plain()
    for name, values in found.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], values)
    (tmp_path / "other").write_bytes(b"{}")
    with pytest.raises(RunDataError, match="other"):
        Tangent.load(tmp_path / "other")


def test_misuse_is_named(examples) -> None:
    runs = recorded(curved, examples, "adamw")
    found = of(curved, examples)
    with pytest.raises(RunDataError, match="SGD, Adam and AdamW"):
        Update.of({"class": "Lion"})
    with pytest.raises(RunDataError, match="amsgrad"):
        Update.of({"class": "Adam", "amsgrad": True})
    with pytest.raises(ValueError, match="give at least two runs"):
        along(curved, examples, runs, "adamw", numbers=(0,), points=(0,))
    with pytest.raises(ValueError, match="do not belong together"):
        Tangent.restored({**found.arrays(), "weights": found.weights[1:]}, found.plain())
    with pytest.raises(ValueError, match="the tangent is of 12 training and 4 test"):
        EffectsSimulator(tangent=of(curved, (examples[0], examples[1][1:]))).fit(runs)
    with pytest.raises(ValueError, match="> 0"):
        model = curved()
        linearise(model, lambda some: losses_of(model)(some) - 9, *examples)
    model = curved().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to attribute to"):
        linearise(model, losses_of(model), *examples)
