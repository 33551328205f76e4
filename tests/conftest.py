"""What many tests share."""

from __future__ import annotations

import pytest
from families import synthetic_runs

from simfluence import RunSet


@pytest.fixture
def runs() -> RunSet:
    """Eight synthetic runs of thirty noisy steps: 12 training and 4 test examples."""
    return synthetic_runs(noise=0.01)[0]
