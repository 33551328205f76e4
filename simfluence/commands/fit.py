"""``simfluence fit``: fit a simulator to a recorded run set and save it."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence import outputs
from simfluence.commands.common import load, make_simulator, print_notes, used_scores
from simfluence.fitted import fit as fit_to


def run(config: DictConfig) -> None:
    outputs.check_file(config.output)
    runs, simulator = load(config.path), make_simulator(config.simulator, config.path)
    fitted = fit_to(runs, simulator, train=config.train, validation=config.validation, level=config.level)
    used = used_scores(config.path, config.simulator, simulator)
    print_notes([*fitted.notes, *fitted.simulator.notes, *used])
    fitted.save(config.output)
    print(f"fitted {simulator} to {len(fitted.runs or ())} runs")
    print(f"saved to {config.output}: simulator={config.output} of whatif and evaluate takes it as it is")
