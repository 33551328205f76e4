"""``simfluence fit``: fit a simulator to a recorded run set and save it."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence import outputs
from simfluence.commands.common import load, make_simulator, print_notes
from simfluence.fitted import fit as fit_to


def run(config: DictConfig) -> None:
    outputs.check_file(config.output)
    runs, simulator = load(config.path), make_simulator(config.simulator)
    fitted = fit_to(runs, simulator, train=config.train, validation=config.validation, level=config.level)
    print_notes([*fitted.notes, *fitted.simulator.notes])
    fitted.save(config.output)
    print(f"fitted {simulator} to {len(fitted.runs or ())} runs")
    print(f"saved to {config.output}: simulator={config.output} of whatif and evaluate takes it as it is")
