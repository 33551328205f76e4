"""``simfluence next_runs``: which curricula to record next, so that a question is answered best."""

from __future__ import annotations

from omegaconf import DictConfig

from simfluence import outputs
from simfluence.commands.common import load
from simfluence.curriculum_files import write_curricula
from simfluence.edit_files import read_edits
from simfluence.questions.compare import check_edits
from simfluence.questions.next_runs import next_runs


def run(config: DictConfig) -> None:
    outputs.check_file(config.output, kinds=["json"])
    runs = load(config.path)
    asked = runs[runs.position(config.run_id) if config.run_id is not None else -1]
    question = None
    if config.file is not None:
        edits = read_edits(config.file)
        if config.only is not None and config.only not in edits:
            raise ValueError(f"{config.file} has no edit {config.only!r}; it has {', '.join(edits)}")
        if config.only is None and len(edits) > 1:
            raise ValueError(f"{config.file} has {len(edits)} edits: choose one, only={next(iter(edits))!r}")
        name = config.only or next(iter(edits))
        question = edits[name]
        check_edits(runs, asked, {name: question}, config.file)
    found = next_runs(
        runs,
        question,
        run=asked,
        count=config.count,
        candidates=config.candidates,
        seed=config.seed,
    )
    write_curricula(config.output, found.curricula, runs.train)
    about = "leaving out each group" if question is None else question.sentence
    print(f"to record next, so that this is answered best, in {asked.id}: {about}\n\n{found}\n")
    print("variance: what is left of that of the answer, of 1 before, with this run and those above it")
    print(
        f"record them: simfluence record path={config.path} curricula={config.output}, with the options that"
        " the set was recorded with"
    )
