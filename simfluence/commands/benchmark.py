"""``simfluence benchmark``: hold simulators and attribution methods to one standard, in paper tables."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simfluence import outputs, report
from simfluence.attribution import METHODS
from simfluence.commands.common import load, plain, print_notes
from simfluence.evaluation.benchmark import benchmark as held_to_one_standard
from simfluence.evaluation.benchmark import needs, score_methods, simulator_methods
from simfluence.finetuning.score_files import make_scores, score_files
from simfluence.finetuning.subsets import banks_beside, retrain_recorded
from simfluence.options import conf_folder
from simfluence.runs import example


def run(config: DictConfig) -> None:
    outputs.check_folder(config.output)
    runs = load(config.path)
    simulators, scored, files = _kinds_of_methods(config.methods)
    if config.subsets or scored:
        example.check_writable(config.path, "subsets=" if config.subsets else f"methods=[{scored[0]}]")
    if config.against not in (*simulators, "persistence", "mean_trajectory"):
        raise ValueError(f"against={config.against} is not among the simulators of methods")
    for name, least in (("subsets", 0), ("seeds", 1)):
        if config[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {config[name]}")
    there = score_files(config.path) if config.scores else []
    made = make_scores(config.path, runs, scored, config.device)
    files = list(dict.fromkeys([*files, *map(str, made), *map(str, there)]))
    split = {key: config[key] for key in ("train", "validation", "test", "processes")}
    split |= {"folder": Path(config.output) / "cells"}
    methods = [*simulator_methods(simulators), *score_methods(files, runs)]
    *_, notes = runs.split_to_test(config.train, config.validation, config.test)
    print_notes(notes)
    found = held_to_one_standard(runs, methods, **split)
    print(f"{config.path}\n\n{found}\n")
    sizes, every = [int(size) for size in config.sizes], [int(step) for step in config.every]
    learners = needs(simulators, files, sizes, every, len(runs))
    costs = held_to_one_standard(runs, learners, **split)
    report.write_benchmark(found, costs, config.output, config.against, report.seconds_of_a_run(config.path))
    if config.subsets:
        retrain_recorded(config.path, runs, config.subsets, config.fraction, config.seeds, config.device)
    for bank in banks_beside(config.path):
        print(f"\n{report.write_lds(bank, files, config.output)}\n")
    print(f"tables (.md, .csv, .tex) and figures (.png, .pdf): {config.output}")


def _kinds_of_methods(names: list[str]) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """Simulators with their options, attribution methods, and files of scores; ValueError for other names."""
    known = {file.stem: file for file in sorted((conf_folder() / "simulator").glob("*.yaml"))}
    simulators, scored, files = {}, [], []
    for name in names:
        if name in known:
            simulators[name] = plain(OmegaConf.load(known[name]))
        elif name in METHODS:
            scored.append(name)
        elif Path(name).is_file():
            files.append(name)
        else:
            close = difflib.get_close_matches(name, [*known, *METHODS], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name!r} is no simulator, no attribution method and no file of scores{hint}")
    return simulators, scored, files
