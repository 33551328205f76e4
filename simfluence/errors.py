"""The errors of this package that a caller may want to catch by name.

Plain misuse of a function (a wrong shape, an unknown option) is a ValueError or a TypeError.
"""

from __future__ import annotations


class RunDataError(ValueError):
    """Recorded data that does not hold together: a damaged file, or tables that disagree."""


class RecordingError(RuntimeError):
    """Recording cannot start or go on; training itself is not at fault."""


class RunExistsError(RecordingError):
    """A run of this name has been recorded, or is being recorded, already."""


class NotFittedError(RuntimeError):
    """simulate() before fit()."""
