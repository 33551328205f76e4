"""Tables of examples: ids and groups as people have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable
from simfluence.runs.tables import as_text


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_number_is_one_id_in_every_type(number: int) -> None:
    for same in (number, np.int64(number), float(number), np.float64(number), torch.tensor(number)):
        assert as_text(same) == str(number)


@pytest.mark.parametrize("missing", [None, np.nan, float("nan"), pd.NA, pd.NaT, np.float32("nan"), ""])
def test_what_is_missing_is_empty(missing: Any) -> None:
    assert as_text(missing) == ""
    assert ExampleTable.of([{"id": 0, "group": missing}]).groups == [""]
    with pytest.raises(RunDataError, match="row 1 has none"):
        ExampleTable.of([{"id": 0}, {"id": missing}])


@given(st.lists(st.none() | st.integers(-9, 9), min_size=1))
def test_groups_are_the_same_from_records_and_from_frames(groups: list[int | None]) -> None:
    """pandas turns integers beside blanks into floats; the groups stay as they are, 0 among them."""
    frame = pd.DataFrame({"id": range(len(groups)), "group": groups})
    expected = ["" if group is None else str(group) for group in groups]
    for table in (
        ExampleTable(frame),
        ExampleTable.of(frame),
        ExampleTable.of([{"id": i, "group": group} for i, group in enumerate(groups)]),
    ):
        assert table.groups == expected
        assert table.ids == [str(i) for i in range(len(groups))]


def test_large_numbers_as_ids() -> None:
    big = 2**63 + 5
    table = ExampleTable.of([{"id": big}, {"id": -1}])
    assert table.rows([-1, big, str(big)]).tolist() == [1, 0, 0]
    with pytest.raises(RunDataError, match=r"float, which may differ"):
        table.rows([float(big)])
