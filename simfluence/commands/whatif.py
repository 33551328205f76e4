"""``simfluence whatif``: edit a curriculum, see the predicted change, verify it by retraining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from simfluence import outputs, verified
from simfluence.commands.common import chosen_run, fit_or_read, load, plain
from simfluence.edit import Edit
from simfluence.runs import example
from simfluence.whatif import what_if


def run(config: DictConfig) -> None:
    """Torch and matplotlib, which take long to import, only where something is retrained or drawn."""
    if config.output is not None:
        outputs.check_folder(config.output)
    if config.verify:
        example.check_writable(config.path, "verify=true")
    runs, edit = load(config.path), Edit(**plain(config.edit))
    run = chosen_run(config, runs)
    edit.apply(run, runs.train)  # raises before the work begins
    fitted = fit_or_read(config, runs, run)
    name = fitted.simulator.name
    known = verified.Verified()
    if config.level is not None:
        known = verified.said(config.path, config.level, name)
    retrain = None
    if config.verify:
        from simfluence.finetuning.retrain import retrain_as_recorded

        retrain = retrain_as_recorded(config.path, str(edit), config.device)
    about = {"train": runs.train, "test": runs.test, "level": config.level}
    answer = what_if(fitted, run, edit, **about, widened=known.widened, retrain=retrain)
    answer = replace(answer, notes=[*answer.notes, *fitted.notes])
    steps = f"{len(answer.original)} steps → {len(answer.edited)}"
    print(f"what if, in {run.id}: {edit} ({steps})\n\n{answer}")
    if config.output is not None:
        from simfluence import report
        from simfluence.html_report import About, made_by

        settings = {"run set": Path(config.path).name, "run": run.id, "simulator": name}
        settings |= {"steps": f"{len(answer.original)} → {len(answer.edited)}", "schedule": answer.schedule}
        question = f"What would {run.id} have learnt with this edit: {edit}?"
        report.write_what_if(answer, config.output, About(question, settings, made_by(runs, run)))
        print(f"\nreport.html, every test example (what_if.csv) and figures: {config.output}")
    if config.verify and answer.level is not None:
        verified.keep(config.path, run.id, str(edit), name, answer)
