"""The user's cache folder, for files that take long to make."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where such files are kept: $XDG_CACHE_HOME/simfluence, or ~/.cache/simfluence."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simfluence"


def write_whole(file: Path, content: bytes) -> Path:
    """Write a file that other processes see whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    partial.write_bytes(content)
    return partial.replace(file)
