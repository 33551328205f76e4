"""Record the benchmark's run sets, runs/paper/<task>-<tuning>.

    python analysis/paper/record.py DATA [--sets copa-ia3 …]     (about 20 minutes a set on two cores)

The first run of a set keeps weights, of which attribution scores are made: after every step where few
parameters are trained, after ten steps where all are. Interrupted, the same command goes on. Kept weights
stay out of the repository.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from protocol import RUN_COUNT, RUNS, SETS, configuration

from simfluence.finetuning.experiment import record_runs

KEEP = {"full": 10, "ia3": "every", "lora": "every", "last_layers": "every"}


def main() -> None:
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    os.chdir(options.data)
    for name in options.sets:
        task, tuning = name.split("-", 1)
        config = configuration(task, tuning)
        first = config | {"run": config["run"] | {"keep_weights": KEEP[tuning]}}
        record_runs(first, RUNS / name, count=RUN_COUNT, numbers=[0])
        record_runs(config, RUNS / name, count=RUN_COUNT, processes=options.processes)


if __name__ == "__main__":
    main()
