"""``simfluence search``: the edit that minimises the predicted loss, as a file that ``whatif`` asks."""

from __future__ import annotations

import shlex
from pathlib import Path

from omegaconf import DictConfig

from simfluence import outputs
from simfluence.commands.common import chosen_run, fitted_for, load
from simfluence.edit_files import write_edits
from simfluence.html_report import About, Section, made_by, write_report
from simfluence.questions.search import check_options, search


def run(config: DictConfig) -> None:
    outputs.check_folder(config.output)
    runs = load(config.path)
    asked = chosen_run(config, runs)
    names = ("goal", "k", "per", "most", "budget", "of", "objective", "risk", "rounds", "candidates", "seed")
    options = {name: config[name] for name in names}
    check_options(asked, runs.train, runs.test, **options)  # raises before a simulator is fitted
    fitted = fitted_for(config, runs, asked)
    fitted.simulator.check_examples(runs)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    found = search(
        fitted,
        asked,
        train=runs.train,
        test=runs.test,
        **options,
        state=folder / "search.json",
        say=lambda sentence: print(f"{sentence}\n", flush=True),
    )
    write_edits(folder / "edits.yaml", {f"best {config.goal}": found.edit})
    found.path.to_csv(folder / "path.csv", index=False)
    found.predicted.to_csv(folder / "predicted.csv", index=False)
    goal = (
        f"{config.goal}, for {config.of or 'all test examples'}: which edit of {asked.id} is predicted best?"
    )
    about = About(goal, {"run set": Path(config.path).name, "run": asked.id, **options}, made_by(runs, asked))
    sections = [
        Section(
            found.edit.sentence,
            "Predicted changes of mean final losses; negative: learnt better.",
            table=found.predicted,
        ),
        Section("How the search went", "The best objective after so many predictions.", table=found.path),
    ]
    write_report(folder, "Search", about, sections, notes=[*fitted.notes, found.caution])
    print(f"in {asked.id}, {found}")
    where = (
        f"path={shlex.quote(config.path)} run_id={asked.id} file={shlex.quote(str(folder / 'edits.yaml'))}"
    )
    print(f"\nthe edit: {folder}/edits.yaml; the search: {folder}/path.csv, report.html")
    print(f"retrain it: simfluence whatif {where} verify=true")
