"""``simfluence whatif``: edit a curriculum, see the predicted change, verify it by retraining."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from simfluence import outputs, report, verified
from simfluence.commands.common import load, make_simulator, plain
from simfluence.edit import Edit
from simfluence.finetuning.retrain import retrain_as_recorded
from simfluence.fitted import Fitted
from simfluence.html_report import About, made_by
from simfluence.runs import example
from simfluence.whatif import ask


def run(config: DictConfig) -> None:
    if config.output is not None:
        outputs.check_folder(config.output)
    if config.verify:
        example.check_writable(config.path, "verify=true")
    runs, edit = load(config.path), Edit(**plain(config.edit))
    simulator = make_simulator(config.simulator) if config.fitted is None else Fitted.load(config.fitted)
    name = simulator.simulator.name if isinstance(simulator, Fitted) else simulator.name
    known = verified.Verified()
    if config.level is not None:
        known = verified.said(config.path, config.level, name)
    answer = ask(
        runs,
        simulator,
        edit,
        run_id=config.run_id,
        train=config.train,
        validation=config.validation,
        level=config.level,
        widened=known.widened,
        retrain=retrain_as_recorded(config.path, str(edit), config.device) if config.verify else None,
    )
    run_id = config.run_id or runs.ids[-1]
    steps = f"{len(answer.original)} steps → {len(answer.edited)}"
    print(f"what if, in {run_id}: {edit} ({steps})\n\n{answer}")
    if config.output is not None:
        made = made_by(runs, runs[runs.position(run_id)])
        settings = {"run set": Path(config.path).name, "run": run_id, "simulator": name}
        settings |= {"steps": f"{len(answer.original)} → {len(answer.edited)}", "schedule": answer.schedule}
        question = f"What would {run_id} have learnt with this edit: {edit}?"
        report.write_what_if(answer, config.output, About(question, settings, made))
        print(f"\nreport: {config.output}/report.html; every test example: {config.output}/what_if.csv")
    if config.verify and answer.level is not None:
        verified.keep(config.path, run_id, str(edit), name, answer)
