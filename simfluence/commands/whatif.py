"""``simfluence whatif``: edit a curriculum, see the predicted change, verify it by retraining.

Torch and matplotlib, which take long to import, are imported only where something is retrained or drawn.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from simfluence import options, outputs, verified
from simfluence.answer import WhatIf
from simfluence.commands.common import chosen_run, fit_or_read, load, plain, print_notes
from simfluence.edit import Edit, Edits
from simfluence.edit_files import read_edits
from simfluence.questions.compare import RetrainEdit, check_edits, compare, compared
from simfluence.runs import Run, RunSet, example


def run(config: DictConfig) -> None:
    if config.output is not None:
        outputs.check_folder(config.output)
    if config.verify:
        example.check_writable(config.path, "verify=true")
    runs, edits = load(config.path), _edits(config)
    asked = chosen_run(config, runs)
    if config.file is not None:
        check_edits(runs, asked, edits, config.file)
    else:
        edits[""].apply(asked, runs.train, runs.test)  # raises before a simulator is fitted
    fitted = fit_or_read(config, runs, asked)
    name = fitted.simulator.name
    known = verified.Verified()
    if config.level is not None:
        known = verified.said(config.path, config.level, name)
    retrain = _retraining(config) if config.verify else None
    answers = compare(runs, fitted, asked, edits, level=config.level, widened=known.widened, retrain=retrain)
    for key, answer in answers.items():
        if config.verify and answer.level is not None:
            verified.keep(config.path, asked.id, str(edits[key]), name, answer)
    if len(answers) == 1:
        ((key, answer),) = answers.items()
        _print_one(config, asked, edits[key], answer)
    else:
        _print_all(config, asked, edits, answers)
    if config.output is not None:
        _write(config, runs, asked, name, edits, answers)


def _edits(config: DictConfig) -> dict[str, Edit | Edits]:
    """The edits of the file, or those of its edits that ``only`` names; or the one that is given, by ""."""
    given = plain(config.edit)
    if config.file is None:
        if config.only:
            raise ValueError("only= chooses among the edits of a file: give file=")
        return {"": Edit(**given)}
    if given != plain(OmegaConf.load(options.conf_folder() / "whatif.yaml").edit):
        raise ValueError("give edits by file= or one by edit.name=, edit.groups=, …, not both")
    edits = read_edits(config.file)
    if unknown := [name for name in config.only or () if name not in edits]:
        raise ValueError(f"{config.file} has no edit {unknown[0]!r}; it has {', '.join(edits)}")
    return {name: edits[name] for name in config.only or edits}


def _retraining(config: DictConfig) -> RetrainEdit:
    from simfluence.finetuning.retrain import retrain_as_recorded

    return lambda edit: retrain_as_recorded(config.path, str(edit), config.device)


def _print_one(config: DictConfig, asked: Run, edit: Edit | Edits, answer: WhatIf) -> None:
    steps = f"{len(answer.original)} steps → {len(answer.edited)}"
    print(f"what if, in {asked.id}: {edit} ({steps})\n\n{answer}")
    if config.output is not None:
        print(f"\nreport: {config.output}/report.html; every test example: {config.output}/what_if.csv")


def _print_all(
    config: DictConfig, asked: Run, edits: dict[str, Edit | Edits], answers: dict[str, WhatIf]
) -> None:
    table = compared(answers, edits)
    print(f"what if, in {asked.id} ({len(asked)} steps):\n")
    for name, answer in answers.items():
        print(f"- {name}: {edits[name].sentence} ({len(answer.edited)} steps)")
    shown = table.drop(columns=["sentence", "steps"])
    print(f"\n{shown.to_markdown(index=False, floatfmt='.4f')}")
    if config.level is not None and "low" in table:
        print(f"\nlow, high: the {config.level:.0%} band of the change")
    print_notes(dict.fromkeys(note for answer in answers.values() for note in answer.notes))
    if config.output is not None:
        print(
            f"\nthe table: {config.output}/edits.csv; each edit's report: {config.output}/edit-1, edit-2, …"
        )


def _write(
    config: DictConfig,
    runs: RunSet,
    asked: Run,
    simulator: str,
    edits: dict[str, Edit | Edits],
    answers: dict[str, WhatIf],
) -> None:
    """A report of the only answer, or one of each in a folder of its own, and the table of all."""
    from simfluence import report
    from simfluence.html_report import About, made_by

    for number, (key, answer) in enumerate(answers.items(), 1):
        folder = Path(config.output) if len(answers) == 1 else Path(config.output) / f"edit-{number}"
        settings = {"run set": Path(config.path).name, "run": asked.id, "simulator": simulator}
        settings |= {"steps": f"{len(answer.original)} → {len(answer.edited)}", "schedule": answer.schedule}
        question = f"What would {asked.id} have learnt with this edit: {edits[key].sentence}?"
        report.write_what_if(answer, folder, About(question, settings, made_by(runs, asked)))
    if len(answers) > 1:
        compared(answers, edits).to_csv(Path(config.output) / "edits.csv", index=False)
