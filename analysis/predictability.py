"""How predictable the regimes of the bank are, beside what the default simulator reaches.

    python analysis/predictability.py FOLDER [--only REGIME ...] [--runs 8]
        [--output analysis/results/predictability.md]

FOLDER holds the recordings (see bank.py) and, in make/, the scripts that trained them, which must import
here. Some runs of each regime are trained again from weights W (1 + ε n), n standard normal, all else equal,
ε = 1e-6 and 1e-3. Columns (simfluence/finetuning/predictability.py has the formulas):

- ceiling ε: what is left of the variance over runs, over all steps / at the last step. No skill is above it.
- other seed: the same where the run's own seed is another one, which draws initial weights and dropout masks,
  in regimes whose runs differ in these.
- growth: how many times a difference of 1e-6 grows, from all runs that were trained again, and (in brackets)
  the least and the most that four of them show, as many as `simfluence predictability` trains again.
- warned: the share of choices of four, and of two, runs that show a growth of which the command warns.
- skill: of ``auto`` with scores along one run (without scores, where the runs share no start), 12 training
  runs, over all steps / at the last step, as results/bank.csv has it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bank import RESULTS, load

from simfluence.finetuning.predictability import (
    GREAT_GROWTH,
    Predictability,
    perturbed,
    predictability,
)

MAKERS = {
    **dict.fromkeys(("gpt-full", "gpt-lora", "high-rate"), "r_gpt"),
    "minilm-own": "r_minilm",
    "transformer-scratch": "r_facts",
}
"""Which script trains a regime; r_small the others."""
SEEDS_DIFFER = ("mlp-inits", "digits-cnn-dropout")
EPSILONS = (1e-6, 1e-3)


def maker(regime: str) -> tuple[Any, Any]:
    """The script that trains a regime, and its ``fit(batches, rates, run) -> losses``."""
    script = importlib.import_module(MAKERS.get(regime, "r_small"))
    if regime == "minilm-own":
        return script, script.R["fit"]
    if regime == "transformer-scratch":
        return script, script.regime()["fit"]
    return script, (script.regime(regime) if script.__name__ == "r_gpt" else script.ALL[regime]())["fit"]


def train_again(
    regime: str, data: dict[str, Any], runs: list[int], epsilon: float, seed: int = 0
) -> np.ndarray:
    """float [run, step + 1, test]: these runs' losses from perturbed weights, by another seed if given."""
    script, fit = maker(regime)
    train, losses = script.train, np.full(data["losses"][runs].shape, np.nan)

    def from_perturbed(model: torch.nn.Module, *args: Any, **options: Any) -> np.ndarray:
        with torch.no_grad():
            for weights in (one for one in model.parameters() if one.requires_grad):
                weights.copy_(perturbed(weights, epsilon, generator))
        return train(model, *args, **options)

    script.train = from_perturbed
    try:
        for number, run in enumerate(runs):
            generator = torch.Generator().manual_seed(run)
            batches = [batch.tolist() for batch in data["batches"][run]]
            again = fit(batches, data["lr"][run][: len(batches)], run + seed)
            losses[number, : len(again)] = again
    finally:
        script.train = train
    return losses


def measure(file: Path, count: int) -> dict[str, str]:
    """A row of the table."""
    data = load(file)
    regime, losses = file.stem, data["losses"].astype(np.float64)
    runs = [*range(12, 16), *range(12)][:count]  # those held out in bank.py first
    row = {"regime": regime}
    for epsilon in EPSILONS:
        again = train_again(regime, data, runs, epsilon)
        found = predictability(losses, again, runs)
        row[f"ceiling {epsilon:g}"] = shown(found)
        if epsilon == EPSILONS[0]:
            of_four, of_two = (growths(losses, again, runs, size) for size in (4, 2))
            row["growth"] = f"{found.growth:.2g} ({min(of_four):.2g} to {max(of_four):.2g})"
            warned = (np.mean([growth >= GREAT_GROWTH for growth in some]) for some in (of_four, of_two))
            row["warned"] = " / ".join(f"{share:.0%}" for share in warned)
    row["other seed"] = ""
    if regime in SEEDS_DIFFER:
        row["other seed"] = shown(predictability(losses, train_again(regime, data, runs, 0.0, 1000), runs))
    return row


def growths(losses: np.ndarray, again: np.ndarray, runs: list[int], size: int) -> list[float]:
    """What every choice of ``size`` of the runs shows."""
    choices = [list(some) for some in itertools.combinations(range(len(runs)), size)]
    return [predictability(losses, again[some], [runs[i] for i in some]).growth for some in choices]


def shown(found: Predictability) -> str:
    return f"{found.ceiling:.3f} / {found.ceiling_at_end:.3f}"


def skills(table: Path) -> dict[str, str]:
    """Regime → skill of ``auto`` by the last version in bank.py's table."""
    rows = pd.read_csv(table, dtype={"version": str}, keep_default_na=False, na_values={"value": [""]})
    rows = rows[
        (rows["version"] == rows["version"].iloc[-1]) & (rows["simulator"] == "auto") & (rows["runs"] == 12)
    ]
    found = {}
    for regime, of_one in rows.groupby("regime"):
        given = "along" if (of_one["scores"] == "along").any() else ""
        values = of_one[of_one["scores"] == given].set_index("measure")["value"]
        found[str(regime)] = f"{values['skill']:.2f} / {values['skill at the end']:.2f}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", help="regimes; all by default")
    parser.add_argument(
        "--runs", type=int, default=8, help="how many of each regime are trained again, 4 at least"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "predictability.md")
    options = parser.parse_args()
    sys.path.insert(0, str(options.folder / "make"))
    skill = skills(RESULTS / "bank.csv")
    rows = []
    for file in sorted(options.folder.glob("*.npz")):
        if options.only is None or file.stem in options.only:
            rows.append(measure(file, options.runs) | {"skill": skill.get(file.stem, "")})
            print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    text = frame.to_markdown(index=False, disable_numparse=True)
    command = "python analysis/predictability.py FOLDER"
    options.output.write_text(
        f"Made by `{command}`, one thread (its head says what the columns are).\n\n{text}\n"
    )
    print(text)


if __name__ == "__main__":
    main()
