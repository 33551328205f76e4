"""Links and their inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simfluence.links import LINKS, LOSS_FLOOR, check_link, link, unlink

losses = st.floats(LOSS_FLOOR, 1000.0)


@given(st.lists(losses, min_size=1), st.sampled_from(LINKS))
def test_unlinking_gives_the_losses_back(values, name):
    np.testing.assert_allclose(unlink(link(values, name), name), values, rtol=1e-9)


@given(st.floats(math.log(math.expm1(LOSS_FLOOR)), 700.0), st.sampled_from(LINKS))
def test_linking_undoes_unlinking(value, name):
    np.testing.assert_allclose(link(unlink(np.array(value), name), name), value, rtol=1e-9, atol=1e-9)


@given(losses, losses, st.sampled_from(LINKS))
def test_links_rise_with_the_loss(first, second, name):
    low, high = sorted([first, second])
    assert link(low, name) <= link(high, name)
    if high > low * (1 + 1e-9):
        assert link(low, name) < link(high, name)


@given(st.floats(LOSS_FLOOR, 30.0))
def test_log_odds_are_those_of_being_wrong(loss):
    probability = math.exp(-loss)
    np.testing.assert_allclose(link(loss, "log_odds"), math.log((1 - probability) / probability), rtol=1e-9)


def test_smaller_losses_count_as_the_floor():
    np.testing.assert_array_equal(link([0.0, -3.0, 1e-5], "log_odds"), link([LOSS_FLOOR] * 3, "log_odds"))


def test_large_values_do_not_overflow():
    assert link(1e6, "log_odds") == 1e6
    assert unlink(np.array(1e6), "log_odds") == 1e6


def test_the_name_of_no_link_is_refused():
    with pytest.raises(ValueError, match=r"link must be one of .*got 'probit'"):
        check_link("probit")
