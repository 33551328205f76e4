"""One HTML file that answers what-ifs by hand: everything that its JavaScript (web/) computes with.

The file holds the fitted simulator, one recorded run and its tables of examples; it needs no server and no
network. Names in the data are those of the JavaScript, which is written as JavaScript is (camelCase).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

import simfluence
from simfluence import verified
from simfluence.curriculum import check_counted
from simfluence.errors import RunDataError
from simfluence.explore.inline import filled
from simfluence.explore.quality import quality
from simfluence.explore.simulators import exported
from simfluence.fitted import Fitted
from simfluence.runs import ExampleTable, Run, RunSet
from simfluence.runs.schedule import recorded_rates
from simfluence.runs.storage import write_atomically
from simfluence.simulators import PredictiveBands
from simfluence.simulators.bands import SHRINKAGE
from simfluence.simulators.recorded import Recorded

_TYPES = {"f": ("f8", "<f8"), "i": ("i4", "<i4")}


def write_page(
    path: str | Path,
    fitted: Fitted,
    runs: RunSet,
    run_id: str | None = None,
    *,
    title: str | None = None,
    texts: bool = False,
    widened: float = 1.0,
    retrained: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Write the page of one recorded run, whole or not at all.

    Parameters
    ----------
    fitted : a simulator and its bands, fitted to runs over the same examples.
    runs : the run set; runs of it that were not fitted to show how good the simulator is.
    run_id : the run whose curriculum is edited; None is the last.
    title : of the page; None says which run it is about.
    texts : whether the texts of the examples are written into the page; else their ids and hashes.
    widened : how many times as wide as otherwise bands are to be (:mod:`simfluence.verified`).
    retrained : of edits that were retrained: their words → test example → true change.

    Raises RunDataError for a simulator of other examples or ``texts`` of a set without texts, and ValueError
    for runs that consume shares of groups or a simulator that the page has no equations of.
    """
    data = page_data(fitted, runs, run_id, title=title, texts=texts, widened=widened, retrained=retrained)
    write_atomically(Path(path), filled(data["title"], as_json(data)).encode())


def page_data(
    fitted: Fitted,
    runs: RunSet,
    run_id: str | None = None,
    *,
    title: str | None = None,
    texts: bool = False,
    widened: float = 1.0,
    retrained: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """What the page computes with: numbers, texts, arrays, mappings of these. See :func:`write_page`."""
    run = checked_run(runs, run_id, texts)
    fitted.simulator.check_examples(runs)
    recorded = fitted.simulator.recorded_
    assert recorded is not None  # since it is fitted
    generator = np.random.default_rng(0).bit_generator.state["state"]
    return {
        "title": title or f"What if, in {run.id}",
        "version": simfluence.__version__,
        "simulatorName": repr(fitted.simulator),
        "fittedTo": str(fitted),
        "fitNotes": [*fitted.notes, *_seen(fitted, run)],
        "simulatorNotes": list(fitted.simulator.notes),
        "simulator": exported(fitted.simulator),
        "bands": None if fitted.bands is None else _bands(fitted.bands, widened),
        "recorded": _recorded(recorded, runs.train),
        "run": _run(run, recorded),
        "train": _table(runs.train, list(dict.fromkeys(runs.train.groups)), texts),
        "test": _table(runs.test, sorted(set(runs.test.groups)), texts),
        "quality": quality(fitted, runs),
        "retrained": {edit: _changes(of, runs.test) for edit, of in (retrained or {}).items()},
        "generator": {"state": str(generator["state"]), "increment": str(generator["inc"])},
    }


def checked_run(runs: RunSet, run_id: str | None, texts: bool) -> Run:
    """The run that a page is about; errors as in :func:`write_page`, for before a simulator is fitted."""
    run = runs[runs.position(run_id) if run_id is not None else -1]
    check_counted([run.curriculum], "the page does not take runs on shares of groups yet: it")
    if texts and not any([*runs.train.frame["text"], *runs.test.frame["text"]]):
        raise RunDataError(
            "texts=true, but this run set holds no texts (only ids, groups and hashes); leave it out, or add"
            " texts to the tables of the set"
        )
    return run


def kept_answers(path: str | Path, run_id: str) -> dict[str, dict[str, float]]:
    """The edits of a run that were retrained and kept with the set: words → test example → true change."""
    rows = verified.load(path)
    rows = rows[(rows["run_id"] == run_id) & (rows["schedule"] == "stretch")]
    return {
        str(edit): dict(zip(of["id"].map(str), of["true_change"].map(float), strict=True))
        for edit, of in rows.drop_duplicates(["edit", "id"], keep="last").groupby("edit")
    }


def as_json(value: Any) -> str:
    """JSON for a <script> element: arrays as base64, no "<" that could end it, numbers that are not finite
    only in arrays.
    """
    text = json.dumps(value, default=_portable, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _portable(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a {type(value).__name__} cannot be written into the page")
    name, kind = ("f4", "<f4") if value.dtype == np.float32 else _TYPES[value.dtype.kind]
    data = base64.b64encode(np.ascontiguousarray(value, kind).tobytes()).decode()
    return {"base64": data, "type": name, "shape": list(value.shape)}


def _seen(fitted: Fitted, run: Run) -> list[str]:
    if fitted.has_seen(run):
        return [f"the simulator was fitted to {run.id} itself; choose a run that it has not seen"]
    return []


def _bands(bands: PredictiveBands, widened: float) -> dict[str, Any]:
    runs = len(bands.errors_)
    quantile = 0.5 + bands.level / 2
    return {
        "level": bands.level,
        "widened": widened,
        "normal": float(stats.norm.ppf(quantile)),
        "student": stats.t.ppf(quantile, np.arange(runs + 1) + SHRINKAGE),
        "tests": bands.scale_.shape[1],
        "scale": bands.scale_,
        "quantile": bands.quantile_,
        "skill": bands.skill_,
        "errors": bands.errors_,
        "errorShape": list(bands.errors_.shape),
        "points": bands.points_.tolist(),
    }


def _recorded(recorded: Recorded, train: ExampleTable) -> dict[str, Any]:
    names = list(dict.fromkeys(train.groups))
    member = np.asarray(train.groups)[:, None] == np.asarray(names)
    return {
        "steps": recorded.steps,
        "lowest": recorded.lowest,
        "highest": recorded.highest,
        "mixed": recorded.mixed,
        "mostUses": recorded.uses.max(0),
        "groupUses": recorded.uses.astype(np.float64) @ member,
    }


def _run(run: Run, recorded: Recorded) -> dict[str, Any]:
    rates = recorded_rates(run) if len(recorded.highest) else None
    warmup = run.config.get("warmup_steps")
    return {
        "id": run.id,
        "examples": run.curriculum.examples,
        "offsets": run.curriculum.offsets,
        "evaluated": run.evaluated.tolist(),
        "losses": run.loss if run.loss.dtype == np.float32 else run.loss.astype(np.float64),
        "initial": run.initial_loss.astype(np.float64),
        "rates": rates,
        "warmup": int(warmup) if isinstance(warmup, int | float) else 0,
    }


def _table(table: ExampleTable, groups: list[str], texts: bool) -> dict[str, Any]:
    return {
        "ids": table.ids,
        "groups": table.groups,
        "groupNames": groups,
        "hashes": table.frame["hash"].tolist(),
        "texts": table.frame["text"].tolist() if texts else None,
    }


def _changes(of: Mapping[str, float], test: ExampleTable) -> npt.NDArray[np.float64]:
    return np.array([of.get(name, np.nan) for name in test.ids])
