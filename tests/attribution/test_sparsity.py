"""Concentration of influence: known shares, known exponents, and laws that do not hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simfluence.attribution import InfluenceScores, power_law_tail, share_of_top, sparsity


def test_share_of_top() -> None:
    assert share_of_top([5.0, 3.0, 2.0, -10.0], 0.25) == 0.5
    assert share_of_top([5.0, 3.0, 2.0, -10.0], 0.01) == 0.5  # at least one counts
    assert share_of_top(np.ones(200)) == pytest.approx(0.01)
    assert np.isnan(share_of_top([-1.0, 0.0]))
    with pytest.raises(ValueError, match="fraction"):
        share_of_top([1.0], 0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.floats(0.01, 1), st.floats(0.1, 10))
def test_share_laws(values: list[float], fraction: float, factor: float) -> None:
    share = share_of_top(values, fraction)
    if max(values) <= 0:
        assert np.isnan(share)
        return
    at_the_top = max(1, round(fraction * len(values)))
    assert at_the_top / len(values) <= share + 1e-9  # the largest are no smaller than the average
    assert share <= 1 + 1e-12
    assert share_of_top(np.array(values) * factor, fraction) == pytest.approx(share)


@pytest.mark.parametrize("alpha", [1.8, 2.5, 3.5])
def test_a_known_exponent(alpha: float) -> None:
    values = np.random.default_rng(0).random(4000) ** (-1 / (alpha - 1)) * 0.3
    tail = power_law_tail(values, samples=50)
    assert tail is not None
    assert abs(tail.alpha - alpha) < 4 * tail.standard_error
    assert tail.p_value > 0.05
    mixed = power_law_tail(np.concatenate([values, np.linspace(0, 0.29, 4000), -values]))
    assert mixed is not None
    assert mixed.alpha == pytest.approx(alpha, abs=0.15)  # the body below s_min is left out
    assert mixed.start >= 0.28


@given(st.lists(st.floats(0.01, 1e3), min_size=12, max_size=60, unique=True))
def test_the_distance_is_that_of_kolmogorov_and_smirnov(values: list[float]) -> None:
    tail = power_law_tail(values)
    assert tail is not None
    above = np.sort(values)[-tail.size :]
    law = stats.pareto(b=tail.alpha - 1, scale=tail.start)
    assert tail.distance == pytest.approx(stats.kstest(above, law.cdf).statistic, abs=1e-12)


def test_a_law_that_does_not_hold() -> None:
    values = np.random.default_rng(0).uniform(1, 2, 3000)
    tail = power_law_tail(values, samples=50)
    assert tail is None or tail.p_value < 0.05 or tail.size < 300


def test_few_or_equal_values() -> None:
    assert power_law_tail([1.0, 2.0, 3.0]) is None
    assert power_law_tail(np.ones(100)) is None
    assert power_law_tail(-np.arange(50.0)) is None


def test_a_row_a_test_example() -> None:
    rng = np.random.default_rng(0)
    scores = np.column_stack([rng.pareto(1.5, 300) + 1, -np.ones(300)])
    frame = sparsity(InfluenceScores(scores, "made up"))
    assert list(frame["proponents"]) == [300, 0]
    assert frame["alpha"][0] == pytest.approx(2.5, abs=0.3)
    assert np.isnan(frame["share"][1])
    assert np.isnan(frame["alpha"][1])
