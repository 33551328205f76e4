"""Curricula and their edits: what must hold for any curriculum, and small cases by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simfluence.curriculum import (
    Curriculum,
    check_shares,
    concatenate,
    count_matrix,
    keep,
    put_before,
    remove,
    repeat,
    shuffle,
    with_length,
)

N = 7
batches = st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=4), min_size=1, max_size=8)
curricula = batches.map(lambda rows: Curriculum.from_batches(rows, N))
examples = st.sets(st.integers(0, N - 1), max_size=N)


def as_lists(curriculum: Curriculum) -> list[list[int]]:
    return [batch.tolist() for batch in curriculum]


def stream(curriculum: Curriculum) -> list[int]:
    return curriculum.examples.tolist()


@given(batches)
def test_a_curriculum_is_its_batches(rows):
    curriculum = Curriculum.from_batches(rows, N)
    assert as_lists(curriculum) == rows
    assert curriculum[-1].tolist() == rows[-1]
    assert len(curriculum) == len(rows)
    assert curriculum.batch_sizes.tolist() == [len(row) for row in rows]
    assert curriculum.used.tolist() == sorted({i for row in rows for i in row})
    counts = curriculum.counts()
    expected = [[row.count(i) for i in range(N)] for row in rows]
    np.testing.assert_array_equal(counts.toarray(), expected)
    np.testing.assert_allclose(count_matrix([curriculum], 2.0).sum(axis=1), 2.0)
    assert curriculum == Curriculum.from_batches(rows, N)
    assert curriculum != Curriculum.from_batches(rows, N + 1)


def test_a_run_ends_earlier_or_goes_on_from_the_beginning():
    curriculum = Curriculum.from_batches([[0, 1], [2, 3], [1], [4, 0]], N)
    assert as_lists(with_length(curriculum, 2)) == [[0, 1], [2, 3]]
    assert with_length(curriculum, 4) == curriculum
    longer = as_lists(with_length(curriculum, 9))
    assert longer == [[0, 1], [2, 3], [1], [4, 0], [0, 1], [2, 3], [1], [4, 0], [0, 1]]
    for steps in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="steps must be a whole number, at least 1"):
            with_length(curriculum, steps)


@given(curricula, examples)
def test_edits_leave_the_original_as_it_was(curriculum, chosen):
    before = as_lists(curriculum)
    rng = np.random.default_rng(0)
    chosen = sorted(chosen) or [0]
    repeat(curriculum, chosen, 3)
    shuffle(curriculum, rng)
    put_before(curriculum, chosen[:1], [])
    if set(stream(curriculum)) - set(chosen):
        remove(curriculum, chosen)
    assert as_lists(curriculum) == before
    with pytest.raises(ValueError, match="read-only"):
        curriculum.examples[0] = 0


@given(curricula, examples, st.booleans())
def test_removing(curriculum, chosen, refill):
    left = [i for i in stream(curriculum) if i not in chosen]
    if not left:
        with pytest.raises(ValueError, match="no example"):
            remove(curriculum, sorted(chosen), refill=refill)
        return
    edited = remove(curriculum, sorted(chosen), refill=refill)
    assert stream(edited) == left
    assert edited.n_examples == N
    if refill:  # full batches of the original sizes, but for the last
        sizes = edited.batch_sizes.tolist()
        assert sizes[:-1] == curriculum.batch_sizes[: len(sizes) - 1].tolist()
        assert sizes[-1] <= curriculum.batch_sizes[len(sizes) - 1]
    else:  # step by step what is left of each
        rows = [[i for i in row if i not in chosen] for row in as_lists(curriculum)]
        assert as_lists(edited) == [row for row in rows if row]


@given(curricula, examples, st.booleans())
def test_keeping_is_removing_the_others(curriculum, chosen, refill):
    others = sorted(set(range(N)) - chosen)
    if not set(stream(curriculum)) & chosen:
        with pytest.raises(ValueError, match="no example"):
            keep(curriculum, sorted(chosen), refill=refill)
        return
    kept = keep(curriculum, sorted(chosen), refill=refill)
    assert kept == remove(curriculum, others, refill=refill)


@given(curricula, examples, st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_repeating(curriculum, chosen, times, scattered, seed):
    rng = np.random.default_rng(seed) if scattered else None
    edited = repeat(curriculum, sorted(chosen), times, rng=rng, adjacent=not scattered)
    before = Counter(stream(curriculum))
    assert Counter(stream(edited)) == {i: n * (times if i in chosen else 1) for i, n in before.items()}
    if not scattered:
        assert stream(edited) == [i for i in stream(curriculum) for _ in range(times if i in chosen else 1)]
    elif rest := [i for i in stream(curriculum) if i not in chosen]:
        assert [i for i in stream(edited) if i not in chosen] == rest
    whole = min(len(edited) - 1, len(curriculum))
    assert edited.batch_sizes[:whole].tolist() == curriculum.batch_sizes[:whole].tolist()
    if times == 1:
        assert edited == curriculum


@given(curricula, examples, examples)
def test_putting_before(curriculum, first, second):
    if first & second:
        with pytest.raises(ValueError, match="before itself"):
            put_before(curriculum, sorted(first), sorted(second))
        return
    edited = put_before(curriculum, sorted(first), sorted(second))
    places = lambda c, chosen: [p for p, i in enumerate(stream(c)) if i in chosen]  # noqa: E731
    assert max(places(edited, first), default=-1) < min(places(edited, second), default=10**9)
    assert places(edited, first | second) == places(curriculum, first | second)
    for group in (first, second, set(range(N)) - first - second):
        order = [i for i in stream(curriculum) if i in group]
        assert [i for i in stream(edited) if i in group] == order
    assert edited.batch_sizes.tolist() == curriculum.batch_sizes.tolist()


@given(curricula, st.one_of(st.none(), st.integers(1, 9)), st.integers(0, 5))
def test_shuffling(curriculum, window, seed):
    edited = shuffle(curriculum, np.random.default_rng(seed), window=window)
    assert edited.batch_sizes.tolist() == curriculum.batch_sizes.tolist()
    size = window or len(curriculum)
    for start in range(0, len(curriculum), size):
        before = [i for row in as_lists(curriculum)[start : start + size] for i in row]
        after = [i for row in as_lists(edited)[start : start + size] for i in row]
        assert sorted(after) == sorted(before)
    assert shuffle(curriculum, np.random.default_rng(seed), window=window) == edited


@given(curricula, curricula)
def test_concatenating(a, b):
    assert as_lists(concatenate(a, b)) == as_lists(a) + as_lists(b)
    assert concatenate(a) == a


def test_by_hand():
    curriculum = Curriculum.from_batches([[0, 1], [2, 3], [0, 2]], 5)
    assert as_lists(remove(curriculum, [0])) == [[1, 2], [3, 2]]
    assert as_lists(remove(curriculum, [0], refill=False)) == [[1], [2, 3], [2]]
    assert as_lists(remove(curriculum, [0, 1], refill=False)) == [[2, 3], [2]]
    assert as_lists(keep(curriculum, 2)) == [[2, 2]]
    assert as_lists(repeat(curriculum, [2], 3, adjacent=True)) == [[0, 1], [2, 2], [2, 3], [0, 2], [2, 2]]
    assert as_lists(put_before(curriculum, [2], [0])) == [[2, 1], [2, 3], [0, 0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curriculum.from_batches([[0], [5]], 5), r"example 5 in step 1 .* 0 \.\. 4"),
        (lambda: Curriculum.from_batches([[0], [-1]], 5), "example -1 in step 1"),
        (lambda: Curriculum.from_batches([[0], []], 5), "step 1 has none"),
        (lambda: Curriculum.from_batches([[0.5]], 5), "integer row numbers, got .* float64"),
        (lambda: Curriculum.from_batches([[[0]]], 5), "vector"),
        (lambda: Curriculum(np.arange(3), np.array([0, 2]), 5), "end at the number of occurrences"),
        (lambda: repeat(Curriculum.from_batches([[0]], 5), [0], 0), "at least 1, got 0"),
        (lambda: repeat(Curriculum.from_batches([[0]], 5), [0], 1.5), "whole number"),
        (lambda: remove(Curriculum.from_batches([[0]], 5), [7]), r"\[7\] are outside"),
        (lambda: shuffle(Curriculum.from_batches([[0]], 5), np.random.default_rng(0), window=0), "window"),
        (lambda: concatenate(), "at least one"),
        (
            lambda: concatenate(Curriculum.from_batches([[0]], 5), Curriculum.from_batches([[0]], 6)),
            r"sizes \[5, 6\]",
        ),
    ],
)
def test_what_makes_no_curriculum(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(IndexError):
        Curriculum.from_batches([[0]], 5)[1]


# ------------------------------------------------------------------------------- shares of groups

SHARES = np.array([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]])


def test_shares_times_units_are_what_a_step_consumes():
    curriculum = Curriculum.from_shares(SHARES, [10, 20, 5])
    expected = SHARES * np.array([[10], [20], [5]])
    np.testing.assert_allclose(curriculum.counts().toarray(), expected)
    np.testing.assert_allclose(curriculum.consumed, [10, 20, 5])
    np.testing.assert_allclose(count_matrix([curriculum], 4.0).toarray(), SHARES * 4.0)  # composition alone
    assert as_lists(curriculum) == [[0, 1], [0, 1, 2], [2]]
    assert len(curriculum) == 3
    assert curriculum.n_examples == 3


def test_amounts_tell_curricula_apart():
    one, other = Curriculum.from_shares(SHARES), Curriculum.from_shares(SHARES[:, [1, 0, 2]])
    counted = Curriculum(one.examples, one.offsets, 3)
    assert one == Curriculum.from_shares(SHARES)
    assert len({one.fingerprint, other.fingerprint, counted.fingerprint}) == 3
    assert one != other
    assert counted not in (one, Curriculum(one.examples, one.offsets, 3, np.ones(6)))


def test_removing_a_group_scales_the_others_or_leaves_them():
    curriculum = Curriculum.from_shares(SHARES, 10)
    refilled, shrunk = remove(curriculum, [1]), remove(curriculum, [1], refill=False)
    np.testing.assert_allclose(refilled.counts().toarray(), [[10, 0, 0], [10 / 8, 0, 70 / 8], [0, 0, 10]])
    np.testing.assert_allclose(shrunk.counts().toarray(), [[6, 0, 0], [1, 0, 7], [0, 0, 10]])
    assert remove(curriculum, [1]) == keep(curriculum, [0, 2])
    assert len(remove(curriculum, [2])) == 2  # nothing is left of the last step


def test_curricula_of_shares_one_after_the_other():
    shares, counted = Curriculum.from_shares(SHARES, 2), Curriculum.from_batches([[0, 0, 2]], 3)
    both = concatenate(shares, counted)
    np.testing.assert_allclose(both.counts().toarray(), [*(SHARES * 2), [2, 0, 1]])
    assert concatenate(counted, counted).amounts is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda curriculum: put_before(curriculum, [0], [1]),
        lambda curriculum: shuffle(curriculum, np.random.default_rng(0)),
    ],
)
def test_edits_that_move_single_examples_refuse_shares(edit):
    with pytest.raises(ValueError, match=r"counted examples.*shares of groups"):
        edit(Curriculum.from_shares(SHARES))


@pytest.mark.parametrize(
    ("shares", "units", "message"),
    [
        ([[0.5, 0.4]], 1, r"step 0 sum to 0.9, which is -0.1 off"),
        ([[0.5, 0.5], [60, 40]], 1, r"step 1 sum to 100"),
        ([[1.5, -0.5]], 1, r"group 1 in step 0 is -0.5"),
        ([[np.nan, 1]], 1, "group 0 in step 0 is nan"),
        ([0.5, 0.5], 1, r"\[step, group\], got shape \(2,\)"),
        ([[0.5, 0.5]], -3, "above 0 and finite, got -3"),
        ([[0.5, 0.5]], np.inf, "above 0 and finite, got inf"),
        ([[0.5, 0.5]], [1, 2], r"\[step\] = \(1,\) as the shares, got shape \(2,\)"),
    ],
)
def test_what_shares_and_units_must_be(shares, units, message):
    with pytest.raises(ValueError, match=message):
        Curriculum.from_shares(shares, units)


def test_shares_are_divided_by_their_sums_if_told():
    np.testing.assert_allclose(check_shares([[60, 20]], "run", normalize=True), [[0.75, 0.25]])
    with pytest.raises(ValueError, match="sum to 0"):
        check_shares([[0, 0]], "run", normalize=True)


@pytest.mark.parametrize("amounts", [[1.0], [1.0, 0.0], [1.0, np.nan]])
def test_amounts_must_fit(amounts):
    with pytest.raises(ValueError, match="amounts must be"):
        Curriculum(np.array([0, 1]), np.array([0, 2]), 2, amounts)
