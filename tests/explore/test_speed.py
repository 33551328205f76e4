"""How long the page takes to answer, on made-up simulators of the sizes that it is meant for."""

from __future__ import annotations

from pathlib import Path

import pytest

BODY = (Path(__file__).parent / "speed.js").read_text()
SIZES = {
    "200 x 100, 60 steps": ({"train": 200, "test": 100, "steps": 60}, 100),
    "5000 x 100, 1875 steps": ({"train": 5000, "test": 100, "steps": 1875}, 1000),
}


@pytest.mark.parametrize("size", SIZES)
def test_an_answer_comes_at_once(size, javascript, tmp_path) -> None:
    """Two members with training dynamics, the dearest of simulators; the quickest of twelve answers in ms."""
    shape, most = SIZES[size]
    found = javascript(BODY, tmp_path, **shape)
    print(f"{size}: {found:.0f} ms")
    assert found < most
