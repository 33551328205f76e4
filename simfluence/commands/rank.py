"""``simfluence rank``: which training examples or groups help test examples most, and which hurt."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence import outputs
from simfluence.commands.common import check_top, chosen_run, fitted_for, load, say_and_write, widened
from simfluence.questions import figures
from simfluence.questions.files import readable
from simfluence.questions.many import chosen_tests
from simfluence.questions.rank import ADD_ONE, check_options, rank, ranked_units

WORDS = {"leave_out": "left out", ADD_ONE: "used once more"}


def run(config: DictConfig) -> None:
    if config.output is not None:
        outputs.check_folder(config.output)
    check_top(config.top)
    check_options(config.per, config.what)
    runs = load(config.path)
    asked = chosen_run(config, runs)
    tests = chosen_tests(runs.test, config.of)
    ranked_units(asked, runs.train, config.per, config.what)  # raises before the work begins
    fitted = fitted_for(config, runs, asked)
    frame = rank(
        fitted,
        asked,
        train=runs.train,
        test=runs.test,
        per=config.per,
        what=config.what,
        of=config.of,
        schedule=config.schedule,
        first_order=config.first_order,
        widened=widened(config, fitted),
    )
    of = list(tests)[-1]
    one = frame[frame["test"] == of].reset_index(drop=True)
    whom = of if of != "all" else "all test examples"
    question = (
        f"each training {config.per} of {asked.id} {WORDS[config.what]}: change of the mean final loss of"
        f" {whom} ({one['method'].iloc[0]}); the most helpful first,"
        " the most harmful last"
    )
    texts = dict(zip(runs.train.ids, runs.train.frame["text"], strict=True))
    shown = readable(figures.ends(one, config.top).drop(columns=["test", "method"]), texts)
    title = f"{asked.id}, each training {config.per} {WORDS[config.what]}: what changes for {whom}"
    say_and_write(config, runs, asked, "rank", frame, shown, figures.ranked(one, title, config.top), question)
