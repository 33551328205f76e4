"""``simfluence record``: fine-tune a model under many curricula and record every run."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence.commands.common import plain
from simfluence.finetuning.experiment import record_runs
from simfluence.finetuning.score_files import keep_initial_scores


def run(config: DictConfig) -> None:
    settings = {key: plain(config[key]) for key in ("task", "model", "tuning", "run")}
    numbers = None if config.number is None else [config.number]
    recorded = record_runs(
        settings,
        config.path,
        count=config.count,
        processes=config.processes,
        numbers=numbers,
        device=config.device,
        mixed=config.mixed,
    )
    what = f"all {config.count} runs" if numbers is None else f"run {config.number} of {config.count}"
    print(
        f"{what} complete in {config.path}; "
        + (f"{len(recorded)} recorded now" if recorded else "nothing to do")
    )
    if config.scores and config.number in (None, 0):  # of many machines, one makes them
        said = keep_initial_scores(config.path, config.device)
        if said:
            print(said)
