"""``simfluence explore``: write a page in which what-ifs of one recorded run are answered by hand."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from simfluence import outputs, verified
from simfluence.commands.common import fail, fitted_for, load
from simfluence.explore import page


def run(config: DictConfig) -> None:
    if config.output is None:
        fail("output has no value: name the page to write, as output=mine.html")
    outputs.check_file(config.output, ("html",))
    runs = load(config.path)
    run = page.checked_run(runs, config.run_id, config.texts)
    fitted, run_id = fitted_for(config, runs, run), run.id
    known = verified.Verified()
    if fitted.bands is not None:
        known = verified.said(config.path, fitted.bands.level, fitted.simulator.name)
    page.write_page(
        config.output,
        fitted,
        runs,
        run_id,
        title=config.title,
        texts=config.texts,
        widened=known.widened,
        retrained=page.kept_answers(config.path, run_id),
    )
    size = Path(config.output).stat().st_size / 1e6
    print(f"{config.output} ({size:.1f} MB): open it in a browser; it needs no server and no network")
