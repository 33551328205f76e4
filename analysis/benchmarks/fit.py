"""How long simulators take to fit, on one thread, beside another version of this project.

    python analysis/benchmarks/fit.py [--before COMMIT-OR-FOLDER] [--limit 400] [--only CASE ...] [--growth]

Every fit runs in a Python process of its own with one thread; the two versions run in turn, so that the ratio
holds on a machine whose speed drifts. A fit that takes longer than ``--limit`` seconds is ended, and stands
as "> limit". With ``--growth`` the fit of ``auto`` with scores is also timed while one size doubles at a
time, for slopes of log time by log size. Writes fit.md and fit.csv beside this file.

Compilation is not counted: every process fits a small problem of the same kind first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

CASES: dict[str, dict[str, Any]] = {
    "auto, n 200, 20 runs × 96 × 40, with scores": {"set": "rte-minilm", "runs": 20, "scores": True},
    "auto, n 200, 20 runs × 96 × 40": {"set": "rte-minilm", "runs": 20},
    "auto, n 200, 1 run with scores": {"set": "rte-minilm", "runs": 1, "scores": True},
    "auto, n 1000, 8 runs × 500 × 100, batch 8": {"sizes": [1000, 100, 8, 500, 8]},
    "auto, n 10 000, 4 runs × 2500 × 100, batch 16, with scores": {
        "sizes": [10_000, 100, 4, 2500, 16],
        "scores": True,
    },
    "linear, λ chosen, n 5000, 4 runs × 1000 × 100": {"sizes": [5000, 100, 4, 1000, 4], "name": "linear"},
}
GROWTH = {
    "training examples": [[n, 50, 8, 250, 8] for n in (500, 1000, 2000, 4000)],
    "steps": [[1000, 50, 8, steps, 8] for steps in (125, 250, 500, 1000)],
    "runs": [[1000, 50, runs, 250, 8] for runs in (4, 8, 16, 32)],
    "test examples": [[1000, tests, 8, 250, 8] for tests in (25, 50, 100, 200)],
}


def main() -> None:
    """Time all cases, or one of them (``--one``) in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", help="a commit or the folder of a checkout to compare with")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds a fit may take")
    parser.add_argument("--only", nargs="+", help="parts of the names of cases")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(json.loads(options.one))))
        return
    sys.path.insert(0, str(FOLDER))
    import pandas as pd
    from common import environment, write

    started = environment() | {"threads": "one"}
    with tempfile.TemporaryDirectory() as scratch:
        before = checkout(options.before, Path(scratch)) if options.before else None
        chosen = {
            name: case
            for name, case in CASES.items()
            if not options.only or any(part in name for part in options.only)
        }
        rows = [row(name, case, before, options.limit) for name, case in chosen.items()]
        if before and before.parent == Path(scratch):
            subprocess.run(["git", "worktree", "remove", "--force", before], check=True, cwd=ROOT)
    sections = {"Fits": pd.DataFrame(rows)}
    if options.growth:
        sections["Growth of auto with scores"] = pd.DataFrame(growth(options.limit))
    notes = ["Seconds of one thread; memory is the most resident memory of the process."]
    write("fit", sections, notes, started)


def checkout(version: str, scratch: Path) -> Path:
    """The folder of a version: as given, or a worktree of the commit."""
    if (Path(version) / "simfluence").is_dir():
        return Path(version).resolve()
    folder = scratch / "before"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, version], check=True, cwd=ROOT)
    return folder


def row(name: str, case: dict[str, Any], before: Path | None, limit: float) -> dict[str, Any]:
    """One line of the table."""
    found: dict[str, Any] = {"fit": name}
    if before:
        earlier = timed(case, before, limit)
        found["before, s"] = f"{earlier['seconds']:.1f}" if earlier else f"> {limit:g}"
    now = timed(case, ROOT, limit)
    found["now, s"] = f"{now['seconds']:.2f}" if now else f"> {limit:g}"
    if before and now:
        seconds = earlier["seconds"] if earlier else limit
        found["ratio"] = f"{'' if earlier else '> '}{seconds / now['seconds']:.0f} ×"
    found["memory, GB"] = f"{now['memory']:.1f}" if now else ""
    print(found, flush=True)
    return found


def growth(limit: float) -> list[dict[str, Any]]:
    """Seconds while one size doubles, and the slope of log time by log size."""
    import numpy as np

    rows = []
    for what, all_sizes in GROWTH.items():
        seconds = []
        for sizes in all_sizes:
            found = timed({"sizes": sizes, "scores": True}, ROOT, limit)
            seconds.append(found["seconds"] if found else np.nan)
        place = next(at for at in range(5) if all_sizes[0][at] != all_sizes[1][at])
        values = [sizes[place] for sizes in all_sizes]
        slope = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        said = ", ".join(f"{value}: {second:.1f} s" for value, second in zip(values, seconds, strict=True))
        rows.append({"what doubles": what, "seconds": said, "slope": f"{slope:.2f}"})
        print(rows[-1], flush=True)
    return rows


def timed(case: dict[str, Any], version: Path, limit: float) -> dict[str, float] | None:
    """Seconds and gigabytes of a fit in a process of its own; None where it takes too long."""
    command = [sys.executable, __file__, "--one", json.dumps(case | {"root": str(ROOT)})]
    paths = os.pathsep.join([str(version), str(FOLDER)])
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    try:
        done = subprocess.run(
            command,
            env=os.environ | threads | {"PYTHONPATH": paths},
            timeout=limit + 60,
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found if found["seconds"] <= limit else None


def one(case: dict[str, Any]) -> dict[str, float]:
    """Fit once in this process."""
    import resource
    import time
    import warnings

    import torch
    from common import trained_runs
    from safetensors.numpy import load_file

    from simfluence import RunSet
    from simfluence.simulators import make_simulator

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "set" in case:
        folder = Path(case["root"]) / "runs" / case["set"]
        runs, scores = RunSet.load(folder)[: case["runs"]], None
        if case.get("scores"):
            scores = load_file(folder / "scores_adam.safetensors")["scores"].astype("float64")
    else:
        runs, scores = trained_runs(*case["sizes"])
        scores = scores if case.get("scores") else None
    name = case.get("name", "auto")
    small, small_scores = trained_runs(40, 6, len(runs), 30, 3)
    for kept, given in ((small, small_scores if scores is not None else None), (runs, scores)):
        params = {} if name == "linear" else {"scores": given}
        start = time.perf_counter()
        make_simulator(name, **params).fit(kept)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


if __name__ == "__main__":
    main()
