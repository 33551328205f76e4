"""The questions that were once answered wrong, asked again.

    python analysis/questions.py FOLDER

FOLDER is a bank of recorded regimes (see bank.py). Printed is, for each question, what ``what_if`` says of
the mean change over all test examples, its band and verdict, and the true change after retraining.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from answers import bank_questions
from bank import load, run_set
from scipy import stats

from simfluence import AutoSimulator, PredictiveBands, what_if
from simfluence.fitted import Fitted

QUESTIONS = (
    ("gpt-lora", 1, True, ("a-before-b", "b-before-a")),
    ("minilm-own", 12, False, ("remove-group", "remove-group-refilled")),
    ("minilm-own", 12, True, ("remove-group", "remove-group-refilled")),
    ("gpt-lora", 9, False, ("remove-group", "remove-group-original-schedule")),
    ("gpt-lora", 9, True, ("remove-group", "remove-group-original-schedule")),
    ("mlp-adam", 12, False, ("all-examples", "repeat-group", "remove-group", "a-before-b")),
    ("mlp-adam", 12, True, ("all-examples", "repeat-group", "remove-group", "a-before-b")),
    ("mlp-inits", 12, False, ("remove-group", "a-before-b")),
)
"""Regime, number of recorded runs, whether with scores along one of them, and edits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder, rows = parser.parse_args().folder, []
    for name, count, with_scores, kinds in QUESTIONS:
        regime = load(folder / f"{name}.npz")
        runs = run_set(regime)
        scores = list(regime["scores_along"].astype(np.float64)) if with_scores else None
        bands = PredictiveBands(AutoSimulator(scores)).fit(runs[:count])
        fitted = Fitted(bands.simulator_, bands)
        for kind, base, edited, schedule, true in bank_questions(regime, runs):
            if kind in kinds:
                answer = what_if(fitted, base, edited, train=runs.train, test=runs.test, schedule=schedule)
                change, mean = answer.changes["change"].to_numpy(), answer.groups.loc["all"]
                held = (answer.changes["low"] <= true) & (true <= answer.changes["high"])
                rows.append(
                    {
                        "regime": name,
                        "runs": f"{count}{' with scores' if with_scores else ''}",
                        "edit": kind,
                        "change": mean["change"],
                        "band": f"{mean['low']:.3f} … {mean['high']:.3f}",
                        "verdict": answer.trust.verdict,
                        "true": true.mean(),
                        "Pearson": stats.pearsonr(change, true).statistic if np.ptp(change) > 0 else np.nan,
                        "in their bands": held.mean(),
                    }
                )
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
