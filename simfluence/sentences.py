"""Edits as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simfluence.runs.schedule import KEEP

if TYPE_CHECKING:
    from simfluence.edit import Edit

_MOST = 6
"""More names than these are counted."""


def sentence(edit: Edit) -> str:
    """What an edit does, as "leave out all training examples of what and which"."""
    these = _examples(edit)
    said = {
        "remove": f"leave out {these}",
        "keep": f"keep nothing but {these}",
        "repeat": f"let every use of {these} occur {edit.times} times",
        "put_before": f"let {these} come before {_named(edit.before_groups, edit.before_ids)}",
        "order": f"let {', then '.join(edit.groups)} follow one after the other",
        "shuffle": "shuffle " + (f"within every {edit.window} steps" if edit.window else "everything"),
        "shares": f"consume {edit.shares}",
        "length": f"train for {edit.steps} steps",
        "sample": f"keep a random {edit.count} of {these or 'all training examples'}",
    }[edit.name]
    said += f" (seed {edit.seed})" if edit.seed else ""
    return said + (", at the original's learning rates step by step" if edit.schedule == KEEP else "")


def _examples(edit: Edit) -> str:
    parts = [_named(edit.groups, edit.ids)] if edit.groups or edit.ids else []
    if edit.text is not None:
        parts.append(f"training examples whose text matches {edit.text!r}")
    if edit.scores is not None:
        limits = [f"above {edit.above:g}"] if edit.above is not None else []
        limits += [f"below {edit.below:g}"] if edit.below is not None else []
        over = f" for {edit.of}" if edit.of else ""
        parts.append(
            f"training examples whose score{over} in {Path(edit.scores).name} is {' and '.join(limits)}"
        )
    return joined(parts)


def _named(groups: Sequence[str], ids: Sequence[str]) -> str:
    parts = [f"all training examples of {joined(groups)}"] if groups else []
    if ids:
        parts.append(f"the training example{'s' if len(ids) > 1 else ''} {joined(ids)}")
    return joined(parts)


def joined(names: Sequence[str]) -> str:
    """ "a, b and c"; of many, the first and how many others there are."""
    if len(names) > _MOST:
        return f"{', '.join(names[: _MOST - 1])} and {len(names) - _MOST + 1} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
