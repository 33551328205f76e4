"""What many tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from families import synthetic_runs

from simfluence import RunSet
from simfluence.cli import main


@pytest.fixture
def runs() -> RunSet:
    """Eight synthetic runs of thirty noisy steps: 12 training and 4 test examples."""
    return synthetic_runs(noise=0.01)[0]


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def simfluence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line in this process (a process of its own takes seconds to import torch)."""

    def call(*arguments: str, cwd: Path) -> Result:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["simfluence"])
        try:
            main(list(arguments))
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return call
