"""The run set that travels with the package: runs/openbookqa-minilm of the repository, 32 real runs.

It holds ids, groups, hashes, curricula and losses, and the scores of two methods; no texts.
``RunSet.example()`` loads it, and every command takes it as ``path=example``. As it is installed it is only
read: what writes beside a run set needs a copy.
"""

from __future__ import annotations

from pathlib import Path

from simfluence.errors import RunDataError
from simfluence.runs import storage

NAME = "example"
"""What commands call it."""

_SET = "openbookqa-minilm"


def folder() -> Path:
    """Where it lies: in the installed package, or in a checkout.

    Raises RunDataError if it was not installed with the package.
    """
    package = Path(__file__).resolve().parents[1]
    places = [package / "example_runs" / _SET, package.parent / "runs" / _SET]
    for place in places:
        if (place / storage.EXAMPLES).is_file():
            return place
    raise RunDataError(f"the example run set is not installed: there is no {places[0]}; reinstall simfluence")


def resolved(path: str | Path) -> Path:
    """The folder that ``path`` means: "example" is the example set, unless a run set of that name is here."""
    path = Path(path)
    is_meant = path == Path(NAME) and not (path / storage.EXAMPLES).is_file()
    return folder() if is_meant else path


def is_read_only(path: str | Path) -> bool:
    """Whether a run set's folder was installed with the package, so that nothing may be written beside it."""
    return Path(path).resolve().is_relative_to(Path(__file__).resolve().parents[1])


def check_writable(path: str | Path, what: str) -> None:
    """Raises ValueError if the folder is the installed example set; ``what`` would write beside it."""
    if is_read_only(path):
        raise ValueError(
            f"{what} writes beside the run set, and the one that travels with simfluence is only read: copy"
            f" the folder {Path(path).resolve()} to runs/{_SET}, and give path=runs/{_SET}"
        )
