"""Runs while they are recorded, in a table that is refreshed in place: ``simfluence runs watch=true``.

Watching reads manifests and journals. It writes nothing, and never takes the lock of a run that could begin:
whether a process records a run is only asked of runs that say so, again when their manifest has changed.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from simfluence.errors import RunDataError
from simfluence.runs import journal, manage, rows, storage

COLUMNS = ["set", "run", "status", "step", "of", "progress", "left", "loss", "last step"]
_BAR = 12


@dataclass
class _Watched:
    """One run: what was read of it so far."""

    folder: Path
    changed: int = -1
    """When its manifest was written, as it was last read."""
    manifest: dict[str, Any] = field(default_factory=dict)
    status: str = ""
    was_running: bool = False
    loss: float = np.nan
    follower: journal.Follower | None = None

    def look(self) -> None:
        """Read what is new. A file that is replaced at this moment is read the next time."""
        try:
            changed = (self.folder / storage.MANIFEST).stat().st_mtime_ns
            if changed != self.changed or self.status == "running":
                self.manifest = storage.read_manifest(self.folder)
                self.status, self.changed = storage.status(self.folder), changed
            self.was_running |= self.status == "running"
            if self.status == "running":
                self._follow()
            elif self.was_running and self.follower is not None:
                self.follower = None
                self.loss = manage.last_mean_loss(self.folder, self.manifest)
        except (OSError, RunDataError):
            return

    def _follow(self) -> None:
        self.follower = self.follower or journal.Follower(self.folder / storage.JOURNAL)
        for entry in self.follower.new():
            if (metrics := rows.metrics_of(entry)) is not None:
                self.loss = manage.finite_mean(metrics["loss"])

    def row(self, now: float) -> tuple[Any, ...]:
        """As in COLUMNS; ``now`` : seconds since 1970."""
        running = self.status == "running" and self.follower is not None
        step = max(self.follower.entries - 1, 0) if running and self.follower else self.manifest["steps"]
        total = self.manifest.get("total_steps")
        left, since = np.nan, np.nan
        if running:
            seconds = storage.seconds(self.folder, self.manifest)
            left = (total - step) * seconds / step if total and step else np.nan
            file = self.folder / storage.JOURNAL
            since = now - file.stat().st_mtime if file.exists() else np.nan
        names = (self.folder.parent.name, self.folder.name, self.status)
        return *names, step, total, progress_bar(step, total), left, self.loss, since


class Watch:
    """The runs of a set, or of all sets in a folder, that are being recorded or were when first looked at.

    Raises RunDataError if there is no run set.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._watched: dict[Path, _Watched] = {}
        manage.set_folders(path)

    def look(self, now: float | None = None) -> pd.DataFrame:
        """One row a run, with the columns :data:`COLUMNS`.

        step, of : steps taken and to be taken (None if it is not known). left : seconds that the others will
        take, at the run's mean pace. loss : the mean over test examples that was evaluated last. last step :
        seconds since then.
        """
        for folder in manage.set_folders(self._path):
            for name in storage.run_ids(folder):
                self._watched.setdefault(folder / name, _Watched(folder / name))
        for one in self._watched.values():
            one.look()
        at = time.time() if now is None else now
        shown = [one.row(at) for one in self._watched.values() if one.was_running]
        return pd.DataFrame(shown, columns=COLUMNS)


def watch(
    path: str | Path,
    out: TextIO | None = None,
    *,
    every: float = 1.0,
    patience: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Print the runs that are being recorded, and refresh the table in place until all have ended, or until
    Ctrl-C. Where ``out`` is no terminal, the table is printed once at the beginning and once at the end.

    every : seconds between looks. patience : for so many seconds the next run may not have begun.
    """
    out = out or sys.stdout
    watched, lines, idle = Watch(path), 0, 0.0
    frame = watched.look()
    if frame.empty:
        print(f"no run is being recorded in {path}", file=out)
        return
    print(text := as_text(frame), file=out, flush=True)
    try:
        while idle < patience:
            sleep(every)
            lines, frame = text.count("\n") + 1, watched.look()
            idle = 0.0 if (frame["status"] == "running").any() else idle + every
            text = as_text(frame)
            if out.isatty():
                print(
                    f"\x1b[{lines}F\x1b[J{text}", file=out, flush=True
                )  # up by so many lines, and over them
    except KeyboardInterrupt:
        pass
    if not out.isatty():
        print(f"\n{text}", file=out)


def as_text(frame: pd.DataFrame) -> str:
    """The table, cut to the size of the terminal; runs that have ended come last."""
    ended = (frame["status"] != "running").astype(int)
    frame = frame.assign(ended=ended).sort_values("ended", kind="stable").drop(columns="ended")
    shown = frame.assign(
        of=[str(total) if total == total and total is not None else "?" for total in frame["of"]],
        left=[duration(seconds) for seconds in frame["left"]],
        loss=[f"{loss:.4f}" if np.isfinite(loss) else "–" for loss in frame["loss"]],
        **{"last step": [f"{s:.0f} s ago" if s == s else "–" for s in frame["last step"]]},
    )
    if len(set(frame["set"])) == 1:
        shown = shown.drop(columns="set")
    columns, height = shutil.get_terminal_size((200, 50))
    cut = shown.head(max(height - 5, 1))
    lines = [line[:columns] for line in cut.to_markdown(index=False, disable_numparse=True).splitlines()]
    return "\n".join([*lines, *([f"and {len(shown) - len(cut)} more"] if len(cut) < len(shown) else [])])


def progress_bar(step: int, total: int | None) -> str:
    """████░░░░░░░░  37%; "" if the number of steps is not known."""
    if not total:
        return ""
    share = min(step / total, 1.0)
    full = int(share * _BAR)
    return f"{'█' * full}{'░' * (_BAR - full)} {share:4.0%}"


def duration(seconds: float) -> str:
    """1:02:03, or 2:03; "–" for NaN."""
    if not np.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
