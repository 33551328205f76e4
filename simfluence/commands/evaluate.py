"""``simfluence evaluate``: fit simulators on some runs, predict the others, print the table."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from simfluence import outputs, report
from simfluence.commands.common import load, make_simulator, plain, print_notes, used_scores
from simfluence.evaluation import evaluate, scores_as_simulators
from simfluence.fitted import Fitted
from simfluence.html_report import About, made_by


def run(config: DictConfig) -> None:
    if config.output is not None:
        outputs.check_folder(config.output)
    runs = load(config.path)
    train, validation, test, notes = runs.split_to_test(
        config.train, config.validation, config.test, seed=config.seed
    )
    chosen = config.only if config.only is not None else list(config.simulators)
    if unknown := [name for name in chosen if name not in config.simulators]:
        raise ValueError(f"only={unknown[0]} is not among the simulators {', '.join(config.simulators)}")
    simulators = {name: make_simulator(config.simulators[name], config.path) for name in chosen}
    if config.only is None and any(curriculum.amounts is not None for curriculum in runs.curricula):
        simulators = {name: one for name, one in simulators.items() if one.takes_shares}
        notes.append("the runs consume shares of groups: without simulators of counted examples")
    if "auto" in simulators:
        notes += used_scores(config.path, config.simulators.auto, simulators["auto"])
    simulators |= scores_as_simulators(plain(config.scores), train)
    fitted = {file: Fitted.load(file) for file in config.fitted}
    simulators |= {f"{one.simulator.name} ({file})": one.unchanged(test) for file, one in fitted.items()}
    print_notes([*notes, *(f"{file}: {one}" for file, one in fitted.items())])
    print(f"{config.path}: {len(train)} training, {len(validation)} validation, {len(test)} test runs\n")
    evaluation = evaluate(simulators, train, test, validation)
    print(evaluation)
    if config.output is not None:
        parts = {"training runs": train, "validation runs": validation, "test runs": test}
        settings = {"run set": Path(config.path).name, **{name: len(part) for name, part in parts.items()}}
        question = "How well do simulators predict runs that they have not seen?"
        report.write_evaluation(evaluation, config.output, About(question, settings, made_by(runs)))
        print(f"report: {config.output}/report.html; tables and figures lie beside it")
