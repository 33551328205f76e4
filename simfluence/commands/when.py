"""``simfluence when``: what a training group changes by its place in training."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence import outputs
from simfluence.commands.common import check_top, chosen_run, fitted_for, load, say_and_write, widened
from simfluence.questions import figures
from simfluence.questions.files import largest, readable
from simfluence.questions.many import chosen_tests
from simfluence.questions.when import movable_groups, when


def run(config: DictConfig) -> None:
    if config.output is not None:
        outputs.check_folder(config.output)
    check_top(config.top)
    runs = load(config.path)
    asked = chosen_run(config, runs)
    tests = chosen_tests(runs.test, config.of)  # these raise before the work begins
    movable_groups(asked, runs.train, config.groups)
    fitted = fitted_for(config, runs, asked)
    frame = when(
        fitted,
        asked,
        train=runs.train,
        test=runs.test,
        groups=config.groups,
        of=config.of,
        widened=widened(config, fitted),
    )
    of = list(tests)[-1]
    whom = of if of != "all" else "all test examples"
    one = frame[frame["test"] == of]
    shown = readable(largest(one, config.top).drop(columns="test"))
    question = (
        f"all uses of each training group of {asked.id} moved to one third of the training: change of the"
        f" mean final loss of {whom}"
    )
    title = f"{asked.id}: the place of each training group, and {whom}"
    figure = figures.placed(one, title)
    say_and_write(config, runs, asked, "when", frame, shown, figure, question)
