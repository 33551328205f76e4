"""Where results are written to, checked before the work that they come of."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def check_file(path: str | Path, kinds: Collection[str] | None = None) -> None:
    """Raises ValueError unless a file can be written there: its folder is there, and it is no folder itself.

    kinds : the endings that its name may have (as "png"); None for any.
    """
    path = Path(path)
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        what = "is a folder" if path.is_dir() else f"would lie in {path.parent}, which is no folder"
        raise ValueError(f"{path} {what}; name a file in a folder that exists")
    if kinds is not None and path.suffix.removeprefix(".").lower() not in kinds:
        raise ValueError(f"the name of {path} must end in one of .{', .'.join(sorted(kinds))}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: permission denied")


def check_folder(path: str | Path) -> None:
    """Raises ValueError unless files can be written into this folder, which may have to be made."""
    path = Path(path)
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise ValueError(f"{path} cannot be a folder, since {there} is a file; name another folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{path} cannot be written: permission denied")
