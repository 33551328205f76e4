"""``simfluence whatif``: edit a curriculum, see the predicted change, verify it by retraining."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from simfluence import options, outputs, report, verified
from simfluence.answer import WhatIf
from simfluence.commands.common import fitted_for, load, plain, print_notes
from simfluence.edit import Edit, Edits
from simfluence.edit_files import read_edits
from simfluence.finetuning.retrain import retrain_as_recorded
from simfluence.questions.compare import check_edits, compare, compared
from simfluence.runs import Run


def run(config: DictConfig) -> None:
    if config.output is not None:
        outputs.check_folder(config.output)
    runs, edits = load(config.path), _edits(config)
    asked = runs[runs.position(config.run_id) if config.run_id is not None else -1]
    if config.file is not None:
        check_edits(runs, asked, edits, config.file)
    else:
        edits[""].apply(asked, runs.train, runs.test)  # raises before a simulator is fitted
    fitted = fitted_for(config, runs, asked)
    name = fitted.simulator.name
    known = verified.Verified()
    if config.level is not None:
        known = verified.said(config.path, config.level, name)
    answers = compare(
        runs,
        fitted,
        asked,
        edits,
        level=config.level,
        widened=known.widened,
        retrain=(lambda edit: retrain_as_recorded(config.path, str(edit), config.device))
        if config.verify
        else None,
    )
    for key, answer in answers.items():
        if config.verify and answer.level is not None:
            verified.keep(config.path, asked.id, str(edits[key]), name, answer)
    if len(answers) == 1:
        ((key, answer),) = answers.items()
        _print_one(config, asked, edits[key], answer)
    else:
        _print_all(config, asked, edits, answers)


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


def _print_one(config: DictConfig, asked: Run, edit: Edit | Edits, answer: WhatIf) -> None:
    steps = f"{len(answer.original)} steps → {len(answer.edited)}"
    print(f"what if, in {asked.id}: {edit} ({steps})\n\n{answer}")
    if config.output is not None:
        report.write_what_if(answer, config.output)
        print(f"\nevery test example: {config.output}/what_if.csv, what_if.png, what_if.md, what_if.json")


def _print_all(
    config: DictConfig, asked: Run, edits: dict[str, Edit | Edits], answers: dict[str, WhatIf]
) -> None:
    table = compared(answers, edits)
    print(f"what if, in {asked.id} ({len(asked)} steps):\n")
    for name, answer in answers.items():
        print(f"- {name}: {edits[name].sentence} ({len(answer.edited)} steps)")
    shown = table.drop(columns=["sentence", "steps"])
    markdown = shown.to_markdown(index=False, floatfmt=".4f")
    print(f"\n{markdown}")
    if config.level is not None and "low" in table:
        print(f"\nlow, high: the {config.level:.0%} band of the change")
    print_notes(dict.fromkeys(note for answer in answers.values() for note in answer.notes))
    if config.output is None:
        return
    Path(config.output).mkdir(parents=True, exist_ok=True)
    table.to_csv(Path(config.output) / "edits.csv", index=False)
    for number, answer in enumerate(answers.values(), 1):
        report.write_what_if(answer, Path(config.output) / f"edit-{number}")
    print(f"\nthe table: {config.output}/edits.csv; each edit: {config.output}/edit-1, edit-2, …")
