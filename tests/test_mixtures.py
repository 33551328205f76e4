"""Mixtures in words: the shares that they mean, step by step, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from simfluence import Curriculum
from simfluence.curriculum import keep, remove, repeat, set_shares
from simfluence.edit import Edit
from simfluence.runs import ExampleTable

GROUPS = ["web", "code", "books"]
TABLE = ExampleTable.of([{"id": name, "group": name} for name in GROUPS])


def shares(mixture, steps: int = 4, units=1.0) -> np.ndarray:
    """Those of every step, [step, group]."""
    curriculum = Curriculum.from_mixture(mixture, GROUPS, steps, units)
    return curriculum.counts().toarray() / curriculum.consumed[:, None]


@pytest.mark.parametrize(
    "mixture",
    [
        "60% web, 10% code, 30% books",
        " 60 % web,10% code , rest books ",
        "0.6 web, .1 code, 0.3 books",
        "3/5 web, 1/10 code, rest books",
        "rest: 60%web, 10%code, 30%books",
        "1/2: 60% web, 10% code, 30% books; 50%: 60% web, 10% code, 30% books",
        {"web": 0.6, "code": 0.1, "books": 0.3},
        {"web": 0.6, "code": 0.1, "books": "rest"},
        [("rest", {"web": 0.6, "code": 0.1, "books": 0.3})],
        [(4, {"web": 0.6, "code": 0.1, "books": 0.3})],
    ],
)
def test_several_ways_to_say_the_same(mixture) -> None:
    np.testing.assert_allclose(shares(mixture), [[0.6, 0.1, 0.3]] * 4)


@pytest.mark.parametrize(
    ("mixture", "of_web"),
    [
        ("50%: 100% web; 50%: 100% code", [1, 1, 0, 0]),
        ("1 step: 100% web; rest: 100% code", [1, 0, 0, 0]),
        ("1 step: 100% code; 2 steps: 1/2 web, 1/2 code; 25%: 100% web", [0, 0.5, 0.5, 1]),
        ("30%: 100% web; rest: 100% code", [1, 0.2, 0, 0]),  # the second step has of both phases
        ("10%: 100% code; 10%: 100% web; 10%: 100% code; rest: 100% web", [0.4, 0.8, 1, 1]),
        ([(0.5, {"web": 1}), (np.int64(2), {"code": 1})], [1, 1, 0, 0]),
    ],
)
def test_phases_follow_each_other(mixture, of_web) -> None:
    np.testing.assert_allclose(shares(mixture)[:, 0], of_web, atol=1e-12)


def test_a_span_is_a_part_of_what_is_consumed() -> None:
    np.testing.assert_allclose(shares("50%: 100% web; 50%: 100% code", 2, [3, 1])[:, 0], [2 / 3, 0])
    np.testing.assert_allclose(shares("1 step: 100% web; rest: 100% code", 2, [3, 1])[:, 0], [1, 0])
    curriculum = Curriculum.from_mixture("100% web", GROUPS, 2, [3, 1])
    np.testing.assert_allclose(curriculum.consumed, [3, 1])


def test_steps_have_nothing_of_other_phases_by_rounding() -> None:
    """10 % and 20 % are not three tenths in floating point."""
    curriculum = Curriculum.from_mixture("10%: 100% web; 20%: 100% code; rest: 100% books", GROUPS, 10)
    assert [batch.tolist() for batch in curriculum] == [[0], [1], [1], *[[2]] * 7]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("60% web, 30% code", r"'web', 'code' must sum to 1, but sum to 0.9, which is -0.1 off; 'rest' and"),
        ("60% web, 60% code", r"sum to 1.2, which is \+0.2 off"),
        ("60% web, 60% code, rest books", r"sum to 1.2"),
        ("60% wbe, 40% code", r"no group 'wbe' \(did you mean 'web'\?\); the groups are web, code, books"),
        ("-10% web, 110% code", "at least 0, but that of 'web' is -0.1"),
        ({"web": np.nan, "code": 1}, "at least 0, but that of 'web' is nan"),
        ({"web": "most", "code": 1}, "numbers of at least 0, but that of 'web' is 'most'"),
        ("rest web, rest code", "one group may have the rest, but 'web' and 'code'"),
        ("web 60%", "'web 60%' is no share of a group: write an amount and then the group"),
        ("", "'' is no share of a group"),
        ("60% web, 20% web, rest code", "'web' stands twice"),
        ("1/0 web", "'1/0' divides by 0"),
        ("rest as before, 30% code", "'rest as before' goes with an edit of a run"),
        ("50%: 100% web; 100% code", "'100% code' is one of 2 phases and needs a span before it"),
        ("first: 100% web; rest: 100% code", "'first' is no span of a run: write '50%'"),
        ("50%: 100% web", "cover the whole run of 4 steps.*end after 0.5 of it"),
        ("5 steps: 100% web", "end after 1.25 of it"),
        ("50%: 100% web; 50%: 100% code; rest: 100% web", "each a part of it, but end after 0.5, 1, 1"),
        ("0%: 100% web; rest: 100% code", "span of a phase must be above 0"),
        ("-2 steps: 100% web; rest: 100% code", "span of a phase must be above 0, got -2"),
        ("rest: 100% web; 50%: 100% code", "'rest' for the last phase"),
        ([], "at least one phase"),
    ],
)
def test_what_a_mixture_must_be(mixture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shares(mixture)


@pytest.mark.parametrize(
    ("steps", "units", "message"),
    [(0, 1, "steps must be"), (1.5, 1, "steps must be"), (2, -1, "above 0"), (2, [1, 2, 3], r"\[step\]")],
)
def test_steps_and_units_of_a_mixture(steps, units, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum.from_mixture("100% web", GROUPS, steps, units)


# ------------------------------------------------------------------------------------------- edits

BEFORE = Curriculum.from_mixture(
    "2 steps: 60% web, 10% code, 30% books; rest: 1/2 web, 1/2 code", GROUPS, 3, 8
)


def edited(edit: Edit) -> np.ndarray:
    curriculum = edit.apply(BEFORE, TABLE)
    np.testing.assert_allclose(curriculum.consumed, 8)
    return curriculum.counts().toarray() / 8


def test_other_shares_of_a_run() -> None:
    np.testing.assert_allclose(edited(Edit("shares", shares="100% books")), [[0, 0, 1]] * 3)
    more_code = edited(Edit("shares", shares="30% code, rest as before"))
    np.testing.assert_allclose(more_code, [[0.7 * 2 / 3, 0.3, 0.7 / 3]] * 2 + [[0.7, 0.3, 0]])
    late = edited(Edit("shares", shares="2 steps: 10% code, rest as before; rest: 100% books"))
    np.testing.assert_allclose(late, [[0.6, 0.1, 0.3]] * 2 + [[0, 0, 1]])


def test_groups_removed_kept_and_repeated() -> None:
    np.testing.assert_allclose(edited(Edit("remove", groups="code")), [[2 / 3, 0, 1 / 3]] * 2 + [[1, 0, 0]])
    np.testing.assert_allclose(
        edited(Edit("keep", groups=["web", "books"])), [[2 / 3, 0, 1 / 3]] * 2 + [[1, 0, 0]]
    )
    tripled = edited(Edit("repeat", groups="code", times=3))
    np.testing.assert_allclose(tripled, [[0.5, 0.25, 0.25]] * 2 + [[0.25, 0.75, 0]])
    assert remove(BEFORE, [1]) == keep(BEFORE, [0, 2])
    np.testing.assert_allclose(repeat(BEFORE, [1], 1).amounts, BEFORE.amounts)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("shares", shares="30% cod, rest as before"), "no group 'cod'.*did you mean 'code'"),
        (Edit("shares", shares="30% books, 10% web"), "sum to 0.4"),
        (
            Edit("shares", shares="30% web, 30% code, rest as before"),
            "step 2 consumed nothing but 'web', 'code'",
        ),
        (Edit("shares", shares="2 steps: 60% web, 10% code, 30% books; rest: 1/2 web, 1/2 code"), "nothing"),
        (Edit("put_before", groups="web", before_groups="code"), "put_before needs counted examples"),
        (Edit("shuffle"), "shuffle needs counted examples"),
    ],
)
def test_edits_that_shares_refuse(edit: Edit, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit.apply(BEFORE, TABLE)


def test_counted_examples_have_no_shares() -> None:
    counted = Curriculum.from_batches([[0, 1], [2]], 3)
    with pytest.raises(ValueError, match="needs a curriculum of shares of groups"):
        set_shares(counted, "100% web", GROUPS)
    with pytest.raises(ValueError, match="takes shares=, a mixture of groups"):
        Edit("shares")
    with pytest.raises(ValueError, match="'remove' takes no shares"):
        Edit("remove", groups="web", shares="100% web")
