"""Compiled training dynamics: states against a naive loop, derivatives against finite differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from simfluence.kernels.arguments import ETA, POWER, RATES, Batches, Dynamics, Parameters
from simfluence.kernels.dynamics import GAIN, train

N, K, RATE_KNOTS, KEPT = 6, 3, 4, 2
NEVER = np.iinfo(np.int64).max


@dataclass
class Problem:
    """Three runs of different lengths, with batches of one to four examples, and random dynamics."""

    bias_correction: bool
    growth: float = 0.3
    sizes: tuple[int, ...] = (1, 2, 4)
    lengths: tuple[int, ...] = (9, 4, 7)
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        sizes = rng.choice(self.sizes, sum(self.lengths))
        self.indices = rng.integers(0, N, sizes.sum())
        self.bounds = np.concatenate([[0], np.cumsum(sizes)])
        self.factors = rng.normal(size=(N, K))
        self.log_sizes = rng.normal(size=K)
        self.given_rates = rng.uniform(0.2, 0.5, (3, 9))
        self.rate_hats, self.kept_hats = rng.uniform(0, 1, (9, RATE_KNOTS)), rng.uniform(0, 1, (9, KEPT))
        self.points = np.array([0, 1, 3, 6, 9])
        self.start = 0.3
        own = rng.normal(0, 0.1, RATE_KNOTS + KEPT)
        self.numbers = np.concatenate([[np.log(0.8), 1.1, self.growth, -0.2], own])

    @property
    def batches(self) -> Batches:
        return Batches(self.indices, self.bounds, np.array(self.lengths))

    def dynamics(self, numbers: np.ndarray) -> Dynamics:
        """Those of log κ, logit β, η, q and the parameters of log γ and log α."""
        feedback, beta, growth, power = numbers[:RATES]
        gamma, alpha = np.split(numbers[RATES:], [RATE_KNOTS])
        return Dynamics(
            factors=self.factors,
            metric=np.exp(2 * power * self.log_sizes),
            rates=self.given_rates * np.exp(self.rate_hats @ gamma),
            kept=np.exp(self.kept_hats @ alpha),
            beta=1 / (1 + np.exp(-beta)),
            bias_correction=self.bias_correction,
            feedback=np.exp(feedback),
            growth=growth,
            start=self.start,
        )

    def trained(self, numbers: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parameters = Parameters(2 * self.log_sizes, self.rate_hats, self.kept_hats, begins)
        return train(self.batches, self.dynamics(numbers), parameters, self.points)

    def states(self, numbers: np.ndarray) -> np.ndarray:
        return self.trained(numbers, np.empty(0, np.int64))[0]

    def derivatives(self, numbers: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.trained(numbers, begins)[:2]


def naive_states(problem: Problem, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """(x [run, point, k], ρ [use], the gain after each step), by the equations in dynamics/model.py."""
    u, metric, rates, kept, beta, corrected, kappa, eta, f0 = problem.dynamics(numbers)
    points = problem.points
    states, residuals, gains, step = np.zeros((3, len(points), K)), [], [], 0
    for run, length in enumerate(problem.lengths):
        y, m, gain, n = np.zeros(K), np.zeros(K), 1.0, 0.0
        path = [gain * y]
        for t in range(length):
            batch = problem.indices[problem.bounds[step] : problem.bounds[step + 1]]
            step += 1
            f = [f0 + kappa * gain * u[i] @ (metric * y) for i in batch]
            rho = [(1 + np.exp(f0)) / (1 + np.exp(value)) for value in f]
            residuals += rho
            g = np.mean([r * u[i] for r, i in zip(rho, batch, strict=True)], axis=0)
            size = 1 - beta ** (t + 1) if corrected else 1.0
            m, n = beta * m + (1 - beta) * g, beta * n + (1 - beta) * (metric * y) @ g
            y = kept[t] * y + rates[run, t] * gain * m / size
            gain = np.clip(gain + eta * n / size, *GAIN)
            gains.append(gain)
            path.append(gain * y)
        states[run] = [path[min(point, length)] for point in points]
    return states, np.array(residuals), gains


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("growth", [0.0, 0.3, 50.0])
def test_states_and_residuals_are_those_of_the_equations(bias_correction, growth):
    problem = Problem(bias_correction, growth)
    states, _, residuals = problem.trained(problem.numbers, np.empty(0, np.int64))
    expected = naive_states(problem, problem.numbers)
    np.testing.assert_allclose(states, expected[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(residuals, expected[1], rtol=1e-11)


def finite_differences(problem: Problem, numbers: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """[number, run, point, k], by central differences."""
    columns = []
    for direction in step * np.eye(len(numbers)):
        difference = problem.states(numbers + direction) - problem.states(numbers - direction)
        columns.append(difference / (2 * step))
    return np.stack(columns)


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (3,), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 4, 7), (1, 9, 2)], ids=str)
def test_derivatives_are_finite_differences(bias_correction, sizes, lengths):
    problem = Problem(bias_correction, sizes=sizes, lengths=lengths)
    begins = np.zeros(len(problem.numbers), np.int64)
    states, derivatives = problem.derivatives(problem.numbers, begins)
    np.testing.assert_allclose(states, problem.states(problem.numbers), rtol=1e-12)
    expected = finite_differences(problem, problem.numbers)
    assert np.abs(expected).max(axis=(1, 2, 3)).min() > 1e-3  # every number matters
    np.testing.assert_allclose(derivatives, expected, atol=1e-8)


def test_derivatives_of_a_fixed_kernel_leave_out_what_does_not_change():
    """η, q and α are held: their derivatives are 0, and the others are right without them."""
    problem = Problem(True, growth=0.0)
    numbers = problem.numbers.copy()
    numbers[[POWER, *range(RATES + RATE_KNOTS, RATES + RATE_KNOTS + KEPT)]] = 0.0
    held = np.r_[ETA, POWER, RATES + RATE_KNOTS : RATES + RATE_KNOTS + KEPT]
    begins = np.zeros(len(numbers), np.int64)
    begins[held] = NEVER
    derivatives = problem.derivatives(numbers, begins)[1]
    expected = finite_differences(problem, numbers)
    expected[held] = 0.0
    np.testing.assert_allclose(derivatives, expected, atol=1e-8)


def test_a_parameter_may_begin_where_it_first_matters():
    """The loops leave a parameter alone until ``begins``: that changes nothing."""
    problem = Problem(True)
    problem.rate_hats[:3, 1] = 0.0
    problem.kept_hats[:5, 1] = 0.0
    begins = np.zeros(len(problem.numbers), np.int64)
    derivatives = problem.derivatives(problem.numbers, begins)[1]
    begins[[RATES + 1, RATES + RATE_KNOTS + 1]] = 3, 5
    np.testing.assert_allclose(problem.derivatives(problem.numbers, begins)[1], derivatives, atol=1e-15)
    np.testing.assert_allclose(derivatives, finite_differences(problem, problem.numbers), atol=1e-8)


@pytest.mark.parametrize("growth", [30.0, -30.0])
def test_where_the_gain_is_at_a_bound_it_does_not_move(growth):
    problem = Problem(True, growth=growth)
    assert set(naive_states(problem, problem.numbers)[2]) & set(GAIN)
    begins = np.zeros(len(problem.numbers), np.int64)
    derivatives = problem.derivatives(problem.numbers, begins)[1]
    expected = finite_differences(problem, problem.numbers, 1e-7)
    np.testing.assert_allclose(derivatives, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
