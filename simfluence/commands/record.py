"""``simfluence record``: fine-tune a model under many curricula and record every run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from simfluence.commands.common import plain
from simfluence.curriculum_files import read_curricula
from simfluence.finetuning.experiment import record_runs
from simfluence.finetuning.score_files import keep_initial_scores
from simfluence.finetuning.tasks import load_task
from simfluence.runs import ExampleTable
from simfluence.runs.storage import read_examples


def run(config: DictConfig) -> None:
    settings = {key: plain(config[key]) for key in ("task", "model", "tuning", "run")}
    numbers, curricula, count = None if config.number is None else [config.number], None, config.count
    if config.curricula is not None:
        table = ExampleTable.of(load_task(**settings["task"]).train)
        curricula = read_curricula(config.curricula, table)
        count = len(curricula)
    recorded = record_runs(
        settings,
        config.path,
        count=count,
        processes=config.processes,
        numbers=numbers,
        curricula=curricula,
        device=config.device,
        mixed=config.mixed,
    )
    what = f"all {count} runs" if numbers is None else f"run {config.number} of {count}"
    train, test = read_examples(Path(config.path))
    print(
        f"{what} complete in {config.path} ({len(train)} training and {len(test)} test examples); "
        + (f"{len(recorded)} recorded now" if recorded else "nothing to do")
    )
    if config.scores and config.number in (None, 0):  # of many machines, one makes them
        said = keep_initial_scores(config.path, config.device)
        if said:
            print(said)
