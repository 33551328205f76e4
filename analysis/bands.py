"""How often 90% bands hold the losses of new runs, and how wide they are, on every recorded run set.

    python analysis/bands.py [--sizes 20] [--splits 4]

Runs are split at random, several times: the first ``size`` of a shuffled order train, twelve (or as many as
are left) are held out, so that one draw of held-out runs does not decide. Writes analysis/results/bands.csv
(a row a set, simulator, size and split; an interrupted run goes on where it was) and bands.md, means over
splits. Width is in units of the loss, over all steps and at the last, and relative to the width of the mean
trajectory's own bands.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from simfluence.runs import RunSet
from simfluence.simulators import PredictiveBands, make_simulator

RESULTS = Path(__file__).parent / "results"
EVERYWHERE = ("mean_trajectory", "auto")
ONCE = ("additive", "multiplicative", "linear", "effects", "features")  # with one split of the larger size


KEYS = ["set", "simulator", "training runs", "split"]


def run_sets() -> Iterator[tuple[Path, RunSet]]:
    for folder in sorted(path.parent for path in Path("runs").glob("*/examples.parquet")):
        if not folder.name.endswith("-pool"):  # those are for unseen.py
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield folder, RunSet.load(folder)


def cover(name: str, train: RunSet, test: RunSet) -> dict[str, float]:
    """Coverage and width of one simulator's bands on one split."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bands = PredictiveBands(make_simulator(name)).fit(train)
        seconds = time.perf_counter() - start
        low, high = bands.predict(test.curricula, test.initial_loss)
    inside = ((low <= test.loss) & (test.loss <= high))[:, 1:]
    width = (high - low)[:, 1:]
    return {
        "coverage": inside.mean(),
        "coverage, last step": inside[:, -1].mean(),
        "least of six parts of training": min(part.mean() for part in np.array_split(inside, 6, axis=1)),
        "width": width.mean(),
        "width, last step": width[:, -1].mean(),
        "seconds": seconds,
    }


def splits(runs: RunSet, size: int, count: int) -> list[tuple[RunSet, RunSet]]:
    orders = [np.random.default_rng(number).permutation(len(runs)) for number in range(count)]
    return [(runs[np.sort(order[:size])], runs[np.sort(order[size:][:12])]) for order in orders]


def to_markdown(frame: pd.DataFrame) -> str:
    keys = KEYS[:3]
    own = frame[frame["simulator"] == "mean_trajectory"].drop(columns="simulator")
    paired = frame.merge(own, on=["set", "training runs", "split"], suffixes=("", " of its own"))
    for width in ("width", "width, last step"):  # relative to the mean trajectory's of the same split
        frame = paired.assign(**{f"{width}, relative": paired[width] / paired[f"{width} of its own"]})
        paired = frame
    frame = frame[[column for column in frame if "of its own" not in column]]
    grouped = frame.sort_values("set", kind="stable").groupby(keys, sort=False)
    table = grouped.mean(numeric_only=True).drop(columns=["split", "seconds"])
    table["splits"] = grouped.size()
    shown = table.reset_index()
    percent = [column for column in shown if "coverage" in column or "least" in column]
    for column in percent:
        shown[column] = shown[column].map("{:.1%}".format)
    for column in shown.columns.difference([*keys, *percent, "splits"]):
        shown[column] = shown[column].map("{:.3g}".format)
    return shown.to_markdown(index=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20])
    parser.add_argument("--splits", type=int, default=4)
    options = parser.parse_args()
    file = RESULTS / "bands.csv"
    frame = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=KEYS)
    done = set(frame[KEYS].itertuples(index=False, name=None))
    for names in (EVERYWHERE, ONCE):
        for folder, runs in run_sets():
            sizes = [size for size in options.sizes if size + 4 <= len(runs)]
            for size in sizes if names is EVERYWHERE else sizes[-1:]:
                for split, (train, test) in enumerate(splits(runs, size, options.splits)):
                    for name in names:
                        key = (folder.name, name, size, split)
                        if key in done or (names is ONCE and split):
                            continue
                        row = dict(zip(KEYS, key, strict=True)) | cover(name, train, test)
                        frame = pd.DataFrame([*frame.to_dict("records"), row])
                        frame.to_csv(file, index=False, float_format="%.5g")
                        print(row, flush=True)
    (RESULTS / "bands.md").write_text(to_markdown(frame))


if __name__ == "__main__":
    main()
