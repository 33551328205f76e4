"""What is computed from examples knows from which, and is checked where it meets others."""

from __future__ import annotations

import pandas as pd
import pytest

from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable, TableFingerprints
from simfluence.runs.tables import difference


def table(*ids: str, group: str = "", text: str = "a") -> ExampleTable:
    return ExampleTable.of([{"id": i, "group": group, "text": text} for i in ids])


def test_equal_and_unknown_tables_pass() -> None:
    known = TableFingerprints.of(table("a", "b"), table("c"))
    known.check(TableFingerprints.of(table("a", "b"), table("c")), "these scores")
    known.check(TableFingerprints(), "these scores")
    TableFingerprints().check(known, "these scores")
    assert TableFingerprints.of(ExampleTable.numbered(3), table("c")) == TableFingerprints("", known.test)


@pytest.mark.parametrize(
    ("train", "test", "kind"),
    [
        (table("b", "a"), table("c"), "training"),
        (table("a", "b", text="other"), table("c"), "training"),
        (table("a", "b"), table("d"), "test"),
    ],
)
def test_other_tables_are_refused(train: ExampleTable, test: ExampleTable, kind: str) -> None:
    ours, theirs = TableFingerprints.of(table("a", "b"), table("c")), TableFingerprints.of(train, test)
    with pytest.raises(
        RunDataError, match=f"these scores are of other {kind} examples than the kernel: .*expected"
    ):
        ours.check(theirs, "these scores", "the kernel")


def test_the_first_difference_is_named() -> None:
    ours = table("a", "b")
    assert difference(ours, ours) == ""
    assert difference(ours, table("a")) == "1 examples instead of 2"
    assert difference(ours, table("a", "c")) == "example number 1 is called 'c' instead of 'b'"
    assert difference(ours, table("a", "b", group="g")) == "example 'a' is in group 'g' instead of ''"
    assert "example 'a' is of other content: " in difference(ours, table("a", "b", text="other"))
    assert difference(ours, ExampleTable(pd.DataFrame({"id": ["a", "b"]}))).startswith("example 'a'")
