"""``simfluence predictability``: retrain runs from weights that hardly differ: a ceiling of skill."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence.commands.common import load, print_notes
from simfluence.evaluation import evaluate
from simfluence.finetuning.predictability import predictability as compared
from simfluence.finetuning.predictability import train_again
from simfluence.simulators import make_simulator


def run(config: DictConfig) -> None:
    runs = load(config.path)
    train, validation, test, notes = runs.split_to_test(config.train, config.validation)
    numbers = range(len(runs))[-config.count :]
    again = train_again(config.path, [runs[number] for number in numbers], config.epsilon, config.device)
    found = compared(runs.loss, again, numbers)
    reached = evaluate({"auto": make_simulator("auto")}, train, test, validation).skill("auto")
    print_notes([*notes, *([found.warning] if found.warning else [])])
    print(f"{config.path}: {len(numbers)} runs trained again from weights changed by {config.epsilon:g}\n")
    print(found.beside("skill of auto", reached))
