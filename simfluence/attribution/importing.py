"""Importing: scores that other libraries made, in our orientation and sign.

Ours are [train, test], positive where training on i lowers the loss of z. What the others do, where queries
are losses (a query that should be high, a likelihood or a margin, has the same sign: training on a proponent
raises it):

| library | orientation | positive |
|---|---|---|
| kronfluence: pairwise scores, by module or of all | [query, train] | lowers the loss |
| captum: TracInCP and its kin | [test, train] | lowers the loss |
| TRAK (traker) | [train, test] | raises the margin |
| dattri | [train, test] | lowers the loss |
| bergson: a score directory | [train, query] | lowers the loss, if `higher_is_better` (the default) |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import recfunctions
from safetensors import SafetensorError
from safetensors.numpy import load_file

from simfluence.errors import RunDataError
from simfluence.scores import InfluenceScores, Weighing

Orientation = Literal["train,test", "test,train"]
Sign = Literal["lowers", "raises"]

LIBRARIES: dict[str, Orientation] = {
    "kronfluence": "test,train",
    "captum": "test,train",
    "trak": "train,test",
    "dattri": "train,test",
    "bergson": "train,test",
}
"""The libraries whose conventions are known. In all of them a positive score lowers the loss."""


def import_scores(
    source: Any,
    *,
    library: str | None = None,
    orientation: Orientation | None = None,
    positive: Sign | None = None,
    shape: tuple[int, int] | None = None,
    method: str = "",
    units: str = "",
    weighing: Weighing = "",
) -> InfluenceScores:
    """An array of scores made elsewhere, as :class:`InfluenceScores`.

    Parameters
    ----------
    source : an array, a tensor, a mapping of arrays (one a module: they are added up), a .npy, .npz or
        .safetensors file, or bergson's score directory.
    library : one of :data:`LIBRARIES`, which says orientation and sign; or both are given:
    orientation : what rows and columns are.
    positive : whether a positive score means that training on i lowers or raises the loss of z.
    shape : the expected (train, test), checked after turning. Say it wherever it is known: a square array
        does not show when it is turned the wrong way.
    method, units, weighing : of the result.

    Raises
    ------
    ValueError : orientation or sign not known, another shape. RunDataError : a file that cannot be read.
    """
    if library is not None and library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, got {library!r}")
    orientation = orientation or (LIBRARIES[library] if library else None)
    positive = positive or ("lowers" if library else None)
    if orientation not in ("train,test", "test,train") or positive not in ("lowers", "raises"):
        raise ValueError(
            "say what the array is: library= one of "
            f"{', '.join(LIBRARIES)}; or orientation='train,test' or 'test,train', and positive='lowers' or"
            f" 'raises' (the loss of the test example); got {orientation!r} and {positive!r}"
        )
    array = _array(source)
    if array.ndim != 2:
        raise ValueError(f"scores must have two axes, train and test, got shape {array.shape}")
    array = array if orientation == "train,test" else array.T
    if shape is not None and array.shape != tuple(shape):
        turned = "; it would fit the other way round: check `orientation`" if array.T.shape == shape else ""
        raise ValueError(f"expected scores [train, test] = {tuple(shape)}, got {array.shape}{turned}")
    provenance = {"imported from": library or "array", "orientation": orientation, "positive": positive}
    if isinstance(source, str | Path):
        provenance["file"] = Path(source).name
    return InfluenceScores(
        np.ascontiguousarray(array if positive == "lowers" else -array),
        method=method or library or "imported",
        units=units,
        provenance=provenance,
        weighing=weighing,
    )


def _array(source: Any) -> npt.NDArray[np.floating]:
    if isinstance(source, str | Path):
        source = _read(Path(source))
    if isinstance(source, Mapping):
        if not source:
            raise ValueError("expected at least one array of scores, got none")
        arrays = [_array(value) for value in source.values()]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(f"arrays of one shape add up, got {[array.shape for array in arrays]}")
        return np.sum(arrays, axis=0)
    if hasattr(source, "detach"):  # a tensor; numpy has no bfloat16
        source = source.detach().cpu().double().numpy()
    array = np.asarray(source)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"scores must be numbers, got an array of {array.dtype}")
    return array.astype(np.float64)


def _read(path: Path) -> Any:
    """The content of the file; nothing in it is executed."""
    try:
        if path.is_dir():
            return _read_bergson(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunDataError(f"{path} cannot be read as scores: {error}") from error
    raise RunDataError(
        f"{path}: expected .npy, .npz or .safetensors, or a bergson score directory (a pickled .pt file may"
        " run code when it is opened: load it yourself and pass the tensor)"
    )


def _read_bergson(folder: Path) -> npt.NDArray[np.floating]:
    """[train, query] of scores.bin, whose layout info.json tells."""
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    if info.get("attribute_tokens"):
        raise ValueError("scores by token; expected one a document")
    if (folder / "candidates.npy").exists():
        raise ValueError("scores of some candidates only; expected all training examples")
    described = info["dtype"]
    if isinstance(described, Mapping):
        described = {key: described[key] for key in ("names", "formats", "offsets", "itemsize")}
    else:
        described = [tuple(field) for field in described]
    rows = np.fromfile(folder / "scores.bin", dtype=np.dtype(described), count=int(info["num_rows"]))
    names = [f"score_{number}" for number in range(int(info["num_scores"]))]
    if unwritten := [name for name in names if not rows[name.replace("score", "written")].all()]:
        raise ValueError(f"{unwritten[0]} is not complete")
    return recfunctions.structured_to_unstructured(rows[names], dtype=np.dtype(np.float64))
