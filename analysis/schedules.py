"""What-ifs on the bank: the learning rates of edited curricula, and curricula longer than recorded.

    python analysis/schedules.py FOLDER [--only REGIME ...] [--output analysis/results/schedules.csv]

FOLDER is the bank that analysis/bank.py describes. Of every regime, auto is fitted with bands to 12 runs,
with the gradient scores at the start ("start") and without, and asked by ``what_if`` about every edit, with
schedule="keep" where its retraining took the original's first steps and "stretch" elsewhere. There is a row
an edit:

- ``rates off``: the largest difference of the rates that ``what_if`` gave the simulation from those of the
  retraining, as a share of the highest rate; ``total off``, that of their sums.
- ``sign``: 1 if the mean predicted change has the sign of the mean true one; ``sign before``: when both
  curricula are simulated at the training runs' mean schedule, as when no rates are given.
- ``pearson``, ``pearson before``: of predicted and true changes over test examples.
- ``covered``: the share of test examples whose true edited loss is in the band of level 0.9; ``covered
  before``: in a band as wide as at the last recorded step. ``beyond``: steps beyond the longest recorded run.

Means by regime and by kind are written as Markdown to the file of the same name that ends in .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import bank
import numpy as np
import pandas as pd

from simfluence.curriculum import Curriculum
from simfluence.fitted import Fitted
from simfluence.simulators import PredictiveBands
from simfluence.whatif import what_if

RESULTS = Path(__file__).parent / "results"
LONGER = ("repeat-example", "repeat-group", "all-examples")


def rows_of(file: Path, given: str) -> list[dict[str, Any]]:
    """A row an edit of one regime, with these scores."""
    regime = bank.load(file)
    runs = bank.run_set(regime)
    scores = regime[bank.GIVEN[given]].astype(np.float64) if given else None
    bands = PredictiveBands(bank.make("auto", scores)).fit(runs[:12])
    assert bands.simulator_ is not None
    return [
        {"regime": file.stem, "scores": given, **measured(Fitted(bands.simulator_, bands), runs, edit)}
        for edit in regime["edits"]
    ]


def measured(fitted: Fitted, runs: Any, edit: dict[str, Any]) -> dict[str, Any]:
    """The measures of one edit."""
    base, true = runs[edit["base"]], edit["true_change"].astype(np.float64)
    edited = Curriculum.from_batches(edit["batches"], len(runs.train))
    schedule = "keep" if "first steps" in edit["schedule"] else "stretch"
    answer = what_if(fitted, base, edited, schedule=schedule)
    assert answer.learning_rate is not None
    rates, trained = answer.learning_rate[1], edit["lr"].astype(np.float64)
    both = fitted.simulator.simulate([base.curriculum, edited], base.initial_loss)
    before = bank.last(both, [base.curriculum, edited])
    changes = {"": answer.changes["change"].to_numpy(), " before": before[1] - before[0]}
    recorded = fitted.simulator.recorded_
    assert recorded is not None
    half = (answer.changes["high"] - answer.changes["low"]).to_numpy() / 2
    missed = np.abs(edit["losses"][-1] - answer.changes["edited"].to_numpy())
    return {
        "kind": edit["kind"],
        "base steps": len(base),
        "steps": len(edited),
        "varies": bool(np.ptp(base.learning_rate) > 0),
        "schedule": schedule,
        "rates off": np.abs(rates - trained).max() / trained.max(),
        "total off": abs(rates.sum() / trained.sum() - 1),
        **{f"sign{when}": float(np.sign(c.mean()) == np.sign(true.mean())) for when, c in changes.items()},
        **{
            f"pearson{when}": float(np.corrcoef(c, true)[0, 1]) if np.ptp(c) > 1e-12 else 0.0
            for when, c in changes.items()
        },
        "beyond": max(len(edited) - recorded.steps, 0),
        "covered": float(np.mean(missed <= half)),
        "covered before": float(np.mean(missed <= half * min(recorded.steps / len(edited), 1))),
    }


def to_markdown(frame: pd.DataFrame) -> str:
    """Rates by regime; signs, Pearson and coverage by kind of edit."""
    frame = frame.assign(scores=frame["scores"].replace("", "without"))
    changed = frame[frame["varies"] & (frame["steps"] != frame["base steps"])]
    rates = changed.groupby(["regime", "schedule"])[["rates off", "total off"]].max()
    measures = ["sign before", "sign", "pearson before", "pearson"]
    scheduled = frame[frame["regime"].isin(changed["regime"])]
    signs = scheduled.pivot_table(measures, "kind", "scores")[measures]
    longer = frame[(frame["beyond"] > 0) & frame["kind"].isin(LONGER)]
    covers = longer.pivot_table(["covered before", "covered"], ["kind", "regime"], "scores")
    means = longer.pivot_table(["covered before", "covered"], "kind", "scores", margins=True)
    parts = [
        "# Rates given to the simulation against those of the retraining, largest differences",
        table(rates, ".3f"),
        "# Regimes whose rate is not constant: at the training runs' mean schedule (before) and at own rates",
        table(signs, ".2f"),
        "# Coverage of edited losses beyond the recorded steps by bands of level 0.9; before: not growing",
        table(means, ".2f"),
        table(covers, ".2f"),
    ]
    return "\n\n".join(parts) + "\n"


def table(frame: pd.DataFrame, form: str) -> str:
    """Markdown with plain names of columns."""
    frame = frame.set_axis([", ".join(np.atleast_1d(name)) for name in frame.columns], axis=1)
    return frame.reset_index().to_markdown(index=False, floatfmt=form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--output", type=Path, default=RESULTS / "schedules.csv")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for file in sorted(options.folder.glob("*.npz")):
        if options.only and file.stem not in options.only:
            continue
        for given in ("", "start"):
            if given and bank.load(file)["scores"].size < 2:
                continue
            rows += rows_of(file, given)
            print(file.stem, given, flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(options.output, index=False, float_format="%.5g")
    options.output.with_suffix(".md").write_text(to_markdown(frame))


if __name__ == "__main__":
    main()
