"""``simfluence interactions``: pairs of training groups or examples: redundant, independent or synergetic."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence import outputs
from simfluence.commands.common import check_top, chosen_run, fitted_for, load, say_and_write, widened
from simfluence.questions import figures
from simfluence.questions.files import readable
from simfluence.questions.interactions import interactions, pair_units
from simfluence.questions.many import chosen_tests


def run(config: DictConfig) -> None:
    if config.output is not None:
        outputs.check_folder(config.output)
    check_top(config.top)
    runs = load(config.path)
    asked = chosen_run(config, runs)
    tests = chosen_tests(runs.test, config.of)  # these raise before the work begins
    units = pair_units(asked, runs.train, config.per, config.among)
    fitted = fitted_for(config, runs, asked)
    frame = interactions(
        fitted,
        asked,
        train=runs.train,
        test=runs.test,
        per=config.per,
        among=config.among,
        of=config.of,
        schedule=config.schedule,
        share=config.share,
        widened=widened(config, fitted),
    )
    of = list(tests)[-1]
    whom = of if of != "all" else "all test examples"
    one = frame[frame["test"] == of]
    largest = one["interaction"].abs().sort_values(ascending=False).index
    shown = readable(one.loc[largest[: config.top]].drop(columns="test"))
    wide = one.pivot(index="second", columns="first", values="interaction")
    wide = wide.reindex(index=list(units)[1:], columns=list(units)[:-1])
    title = f"{asked.id}: do training {config.per}s stand in for each other?"
    question = (
        f"pairs of training {config.per}s of {asked.id} left out: change of the mean final loss of {whom}, of"
        " both together against the sum; the largest interactions first"
    )
    panel, unsure = f"{whom}: change without both, less the sum", None
    if "verdict" in one:
        verdict = one.pivot(index="second", columns="first", values="verdict")
        unsure = {panel: verdict.reindex(index=wide.index, columns=wide.columns) == "unknown"}
    figure = figures.matrices({panel: wide}, f"{title}\n(grey: sign not known)", unsure, "interaction")
    say_and_write(config, runs, asked, "interactions", frame, shown, figure, question)
