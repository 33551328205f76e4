"""Are the simulated losses of two versions of this project equal? Proof that a renaming changed no answer.

    python analysis/compare.py BEFORE AFTER [--sets NAME ...] [--sizes 1 8 20] [--only NAME ...]

BEFORE and AFTER are commits or folders of a checkout. Each version fits every simulator, with and without
attribution scores, to the first 1, 8 and 20 runs of three committed run sets, and simulates the last five
runs of each set. Printed: for how many fits the losses agree to 1e-9 (relative to the largest loss), and the
largest difference. The exit status is 1 unless all agree. With ``--keep`` the losses of each version stay in
a subfolder of that folder, and what is there already is not computed again.

Both versions are run with this script's own list of simulators, in a Python process each. A simulator that
was renamed is listed with all its names, the newest first; one that a version does not have is left out
there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

SETS = ("openbookqa-minilm", "rte-minilm", "copa-minilm-high-rate")
SIZES = (1, 8, 20)
HELD_OUT = 5
TOLERANCE = 1e-9

# what it is called here → (registry name, hyperparameters) in this version, then in earlier ones
Spelling = tuple[str, dict[str, Any]]
WITHOUT_SCORES: dict[str, tuple[Spelling, ...]] = {
    "persistence": (("persistence", {}),),
    "mean trajectory": (("mean_trajectory", {}),),
    "additive": (("additive", {}),),
    "multiplicative": (("multiplicative", {}),),
    "linear": (("linear", {}),),
    "linear, pooled": (("linear", {"center": "pooled"}),),
    "linear, order 2": (("linear", {"order": 2}),),
    "linear, a penalty a test example": (("linear", {"per_test": True}),),
    "effects": (("effects", {}), ("deviation", {})),
    "effects with dynamics": (
        ("effects", {"kernel": "effects"}),
        ("effects", {"dynamics": True}),
        ("deviation", {"surrogate": True}),
    ),
    "features": (("features", {}),),
    "auto": (("auto", {}),),
}
WITH_SCORES: dict[str, tuple[Spelling, ...]] = {
    "scores, calibrated": (("scores", {}), ("scored", {})),
    "dynamics": (("dynamics", {}), ("replayed", {})),
    "effects, scores": (("effects", {}), ("deviation", {})),
    "features, scores": (("features", {}),),
    "auto, scores": (("auto", {}),),
}


def main() -> None:
    """Compare two versions, or (``--losses``) write one version's losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("versions", nargs="+", help="BEFORE and AFTER: commits or folders")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--only", nargs="+", help="names of simulators as this script has them")
    parser.add_argument("--keep", type=Path, help="where to keep the losses of both versions")
    parser.add_argument("--losses", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.losses:
        write_losses(Path(options.versions[0]), options.losses, options.sets, options.sizes, options.only)
        return
    if len(options.versions) != 2:
        parser.error(f"expected two versions, BEFORE and AFTER, got {len(options.versions)}")
    with tempfile.TemporaryDirectory() as scratch:
        keep = options.keep or Path(scratch)
        before, after = (losses_of(version, keep, Path(scratch), options) for version in options.versions)
        sys.exit(0 if report(before, after) else 1)


def losses_of(version: str, keep: Path, scratch: Path, options: argparse.Namespace) -> Path:
    """Run this script in that version; the folder of its losses."""
    folder = Path(version)
    if not (folder / "simfluence").is_dir():
        found = subprocess.run(["git", "rev-parse", version], capture_output=True, text=True, check=True)
        commit = found.stdout.strip()
        folder, out = scratch / commit, keep / commit[:12]
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], check=True)
    else:
        out = keep / folder.resolve().name
    command = [sys.executable, __file__, str(folder), "--losses", str(out), "--sets", *options.sets]
    command += ["--sizes", *map(str, options.sizes), *(["--only", *options.only] if options.only else [])]
    try:
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(folder)}, check=True)
    finally:
        if folder.parent == scratch:
            subprocess.run(["git", "worktree", "remove", "--force", folder], check=True)
    return out


def write_losses(version: Path, out: Path, sets: list[str], sizes: list[int], only: list[str] | None) -> None:
    """One file of simulated losses [run, step + 1, test] for each set, number of runs and simulator."""
    import simfluence
    from simfluence.runs import RunSet
    from simfluence.simulators import SIMULATORS, make_simulator

    assert simfluence.__file__ is not None
    assert version.resolve() in Path(simfluence.__file__).resolve().parents, "another version was imported"
    warnings.simplefilter("ignore")
    out.mkdir(parents=True, exist_ok=True)
    for name in sets:
        runs = RunSet.load(version / "runs" / name)
        scores = _scores(version / "runs" / name)
        for size in sizes:
            for simulator, spellings in (WITHOUT_SCORES | WITH_SCORES).items():
                file = out / f"{name}, {size} runs, {simulator}.npy"
                if file.exists() or (only and simulator not in only):
                    continue
                for kind, params in spellings:
                    if kind in SIMULATORS and params.keys() <= signature(SIMULATORS[kind]).parameters.keys():
                        params = params | ({"scores": scores} if simulator in WITH_SCORES else {})
                        np.save(file, _simulated(make_simulator(kind, **params), runs, size))
                        break
                print(f"{version.name}: {file.stem}", file=sys.stderr, flush=True)


def _scores(folder: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(folder / "scores_adam.safetensors")["scores"].astype(np.float64)


def _simulated(simulator: Any, runs: Any, size: int) -> np.ndarray:
    """The losses of the last runs as predicted from the first; empty where these cannot be fitted."""
    held_out = runs[-HELD_OUT:]
    try:
        return simulator.fit(runs[:size]).simulate(held_out.curricula, held_out.initial_loss)
    except ValueError:
        return np.empty(0)


def report(before: Path, after: Path) -> bool:
    """Print what differs; whether nothing does."""
    names = sorted(file.name for file in before.glob("*.npy"))
    missing = [name for name in names if not (after / name).exists()]
    largest, worst, equal, compared = 0.0, "", 0, [name for name in names if name not in missing]
    for name in compared:
        first, second = (np.load(folder / name, allow_pickle=False) for folder in (before, after))
        if first.shape != second.shape or (np.isnan(first) != np.isnan(second)).any():
            difference = np.inf
        else:
            size = np.nanmax(np.abs(first), initial=1.0)
            difference = float(np.nanmax(np.abs(first - second), initial=0.0) / size)
        equal += difference <= TOLERANCE
        if difference > TOLERANCE:
            print(f"differs by {difference:.2g}: {name.removesuffix('.npy')}")
        if difference >= largest:
            largest, worst = difference, name.removesuffix(".npy")
    simulators = {name.removesuffix(".npy").split(" runs, ")[1] for name in compared}
    print(f"{equal} of {len(compared)} fits of {len(simulators)} simulators have equal losses")
    print(f"largest relative difference: {largest:.2g} ({worst})")
    for name in missing:
        print(f"not computed by the second version: {name.removesuffix('.npy')}")
    return equal == len(compared) > 0 and not missing


if __name__ == "__main__":
    main()
