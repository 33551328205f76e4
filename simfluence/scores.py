"""What every attribution method returns.

Sign, everywhere: a positive score means that training on i lowers the loss of z (i is a proponent).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from simfluence.errors import RunDataError
from simfluence.runs.storage import write_atomically
from simfluence.runs.tables import TableFingerprints

_FORMAT = "simfluence scores 1"

INITIAL_SCORES = Path("scores", "initial.safetensors")
"""Where, in the folder of a run set, recording leaves the scores of the weights before training: what a step
of the run's own optimizer does (``gradient_step``). Commands take them where nothing else is asked for."""

OF_STORE = Path("scores.safetensors")
"""Where, in the folder of a store of gradients, the scores of the set's test examples lie."""

Weighing = Literal["rate", "use", "run", ""]
"""What the scores S predict of a training run as they are: that each use of i in a step of b examples lowers
the loss of z by scale · w · S/b. The weight w is

    "rate"   the step's learning rate: scores are inner products of gradients
    "use"    1: scores are changes of the loss in a step
    "run"    1/T in a run of T steps: scores are responses to the weight of i in the mean loss
    ""       not known: the scores have no units"""


@dataclass(frozen=True, eq=False)
class InfluenceScores:
    """Scores of one method.

    scores : float [train, test]; positive: training on i lowers the loss of z. Or those at several steps of a
        run, float [step, train, test].
    method : its name. units : what one is, e.g. "loss² / parameter²" or "none".
    covers : the parameters that gradients were taken of, by name.
    provenance : checkpoint, seeds, settings.
    weighing, scale : see :data:`Weighing`.
    tables : the fingerprints of the training and the test table, where they are known.
    coverage : the share, 0 .. 1, of the numbers that are trained whose gradients count; None for methods
        without gradients, or if it is not known.
    steps : the steps of a run after which scores [step, train, test] were taken, ascending; () for scores
        [train, test].

    Raises ValueError for scores of another shape or not finite, or steps that are not in order.
    """

    scores: npt.NDArray[np.floating]
    method: str
    units: str = ""
    covers: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weighing: Weighing = ""
    scale: float = 1.0
    coverage: float | None = None
    tables: TableFingerprints = field(default_factory=TableFingerprints)
    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        steps, shape = list(self.steps), self.scores.shape
        if steps != sorted(set(steps)) or min(steps, default=0) < 0:
            raise ValueError(f"steps must be 0 or more, ascending, each once; got {steps}")
        if steps and (len(shape) != 3 or len(steps) != shape[0]):
            raise ValueError(f"scores at {len(steps)} steps must be [step, train, test], got shape {shape}")
        if not steps and len(shape) != 2:
            raise ValueError(f"scores must be [train, test], or have steps; got shape {shape}")
        if (bad := np.argwhere(~np.isfinite(self.scores))).size:
            *_, i, z = bad[0]
            raise ValueError(
                f"the score of training example {i} for test example {z} is {self.scores[tuple(bad[0])]}"
                f" ({len(bad)} are not finite)"
            )

    def mean(self) -> InfluenceScores:
        """Scores [train, test]: the mean over steps, or these themselves if they are of one."""
        return replace(self, scores=self.scores.mean(0), steps=()) if self.steps else self

    def save(self, path: str | Path) -> None:
        """One safetensors file."""
        about = {key: value for key, value in vars(self).items() if key != "scores"}
        about |= {"provenance": dict(self.provenance), "tables": asdict(self.tables)}
        metadata = {"format": _FORMAT, "about": json.dumps(about)}
        write_atomically(Path(path), save({"scores": np.ascontiguousarray(self.scores)}, metadata))

    @classmethod
    def load(cls, path: str | Path) -> InfluenceScores:
        """What ``save`` wrote; or, of a store of gradients, the scores of the set's test examples that lie in
        its folder. RunDataError for anything else."""
        if Path(path).is_dir():
            path = Path(path) / OF_STORE
        if not Path(path).is_file():
            hint = ": `simfluence gradients` leaves it there" if Path(path).name == OF_STORE.name else ""
            raise RunDataError(f"there is no file {path}{hint}")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise RunDataError(f"{path} does not hold scores (expected format {_FORMAT!r})")
                scores = file.get_tensor("scores")
        except (SafetensorError, OSError) as error:
            raise RunDataError(f"{path} is damaged or no safetensors file: {error}") from error
        try:
            about = json.loads(metadata["about"])
            tables = TableFingerprints(**about.pop("tables", {}))
            tuples = {"covers": tuple(about["covers"]), "steps": tuple(about.get("steps", ()))}
            return cls(scores, **{**about, **tuples}, tables=tables)
        except (KeyError, TypeError, ValueError) as error:
            raise RunDataError(f"{path} does not say what its scores are: {error}") from error

    def proponents(self, z: int, k: int = 5) -> list[int]:
        """The k training examples that lower the loss of test example z most, the strongest first; on average
        over steps."""
        return [int(i) for i in np.argsort(-self.mean().scores[:, z], kind="stable")[:k]]

    def opponents(self, z: int, k: int = 5) -> list[int]:
        """The k training examples that raise the loss of test example z most, the strongest first; on average
        over steps."""
        return [int(i) for i in np.argsort(self.mean().scores[:, z], kind="stable")[:k]]
