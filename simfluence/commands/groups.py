"""``simfluence groups``: which training group teaches which test group, as a matrix."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence import outputs
from simfluence.commands.common import check_top, chosen_run, fitted_for, load, say_and_write, widened
from simfluence.questions import figures
from simfluence.questions.files import largest, readable
from simfluence.questions.groups import group_matrix, used_groups
from simfluence.questions.many import chosen_tests


def run(config: DictConfig) -> None:
    if config.output is not None:
        outputs.check_folder(config.output)
    check_top(config.top)
    runs = load(config.path)
    asked = chosen_run(config, runs)
    chosen_tests(runs.test, config.of)  # these raise before the work begins
    used_groups(asked, runs.train)
    fitted = fitted_for(config, runs, asked)
    given = {"of": config.of, "schedule": config.schedule, "widened": widened(config, fitted)}
    matrix = group_matrix(fitted, asked, train=runs.train, test=runs.test, **given)
    panels, unsure = {}, {}
    for edit, rows in matrix.groupby("edit", sort=False):
        name = f"each training group {'removed' if edit == 'remove' else 'doubled'}"
        wide = rows.pivot(index="group", columns="test", values="change")
        order = list(dict.fromkeys(matrix["test"]))
        panels[name] = wide[order].rename_axis(index="training group", columns="test group")
        if "verdict" in rows:
            verdict = rows.pivot(index="group", columns="test", values="verdict")
            unsure[name] = verdict[order] == "unknown"
    title = f"{asked.id}: what each training group does for each test group (grey: sign not known)"
    figure = figures.matrices(panels, title, unsure or None)
    question = f"each training group of {asked.id} removed or doubled: change of mean final losses"
    say_and_write(
        config, runs, asked, "groups", matrix, readable(largest(matrix, config.top)), figure, question
    )
