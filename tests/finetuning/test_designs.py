"""The laws of designs by groups."""

from __future__ import annotations

import numpy as np
import pytest

from simfluence.finetuning.designs import draw_curriculum, pool_rows

GROUPS = [f"g{row % 5}" for row in range(30)]  # five groups of six


def stream(name: str, seed: int, **options) -> np.ndarray:
    return draw_curriculum(name, GROUPS, seed, epochs=2, batch_size=2, **options).examples


@pytest.mark.parametrize("seed", range(4))
def test_group_subset_takes_whole_groups(seed: int) -> None:
    found = stream("group_subset", seed, share=0.4)
    groups = {GROUPS[row] for row in found}
    assert len(groups) == 2
    for half in np.split(found, 2):  # every epoch has each example of these groups once
        assert sorted(half) == [row for row in range(30) if GROUPS[row] in groups]
    assert not np.array_equal(*np.split(found, 2))


def test_group_subsets_take_every_group_as_often() -> None:
    counts = np.zeros(5)
    for seed in range(200):
        for group in {row % 5 for row in stream("group_subset", seed, share=0.4)}:
            counts[group] += 1
    np.testing.assert_allclose(counts / 200, 0.4, atol=0.12)


def test_group_blocks_are_uninterrupted_and_in_different_orders() -> None:
    orders = set()
    for seed in range(6):
        for half in np.split(stream("group_blocks", seed), 2):
            assert sorted(half) == list(range(30))
            blocks = [{row % 5 for row in block} for block in np.split(half, 5)]
            assert all(len(block) == 1 for block in blocks)
            orders.add(tuple(block.pop() for block in blocks))
    assert len(orders) > 8


def test_run_k_leaves_group_k_out() -> None:
    for number in range(7):
        found = stream("leave_group_out", 3 + number, number=number)
        assert {row % 5 for row in found} == set(range(5)) - {number % 5}
        for half in np.split(found, 2):
            assert len(set(half)) == len(half) == 24


def test_a_pool_is_the_same_in_every_run_and_the_whole_table_by_default() -> None:
    found = [set(stream("random_subset", seed, size=12, pool=0.4)) for seed in range(5)]
    assert {len(rows) for rows in found} == {12}
    assert all(rows == found[0] == set(pool_rows(30, 0.4)) for rows in found)
    fewer = {row for seed in range(9) for row in stream("random_subset", seed, size=5, pool=0.4)}
    assert fewer == found[0]
    whole = stream("random_subset", 3, size=12)
    np.testing.assert_array_equal(whole, stream("random_subset", 3, size=12, pool=1.0))
    assert {GROUPS[row] for row in stream("group_subset", 0, share=1.0, pool=0.4)} <= set(GROUPS)


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ValueError, match="at least 2 groups"):
        draw_curriculum("group_blocks", ["", ""], 0, epochs=1, batch_size=1)
    with pytest.raises(ValueError, match="share"):
        stream("group_subset", 0, share=0.0)
    with pytest.raises(ValueError, match="pool"):
        stream("random_subset", 0, size=3, pool=1.5)
    with pytest.raises(ValueError, match="got size 13"):
        stream("random_subset", 0, size=13, pool=0.4)
