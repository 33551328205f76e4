"""Screenshots of the page that ``simfluence explore`` writes, into analysis/results/page/.

python analysis/screenshots.py    # takes Chromium and the extra `page` (make test-page installs both)
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from simfluence import RunSet
from simfluence.explore import write_page
from simfluence.fitted import fit
from simfluence.simulators import make_simulator

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs/openbookqa-minilm"
EDIT = "#without=what"
SHOTS = {
    "wide-light": (1280, "light"),
    "wide-dark": (1280, "dark"),
    "narrow": (390, "light"),
}


def main() -> None:
    runs, folder = RunSet.load(RUNS), HERE / "results/page"
    folder.mkdir(parents=True, exist_ok=True)
    fitted = fit(runs, make_simulator("auto"), held_out=runs.ids[-1])
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        page = Path(scratch) / "page.html"
        write_page(page, fitted, runs)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
        for name, (width, scheme) in SHOTS.items():
            shot(browser, page, width, scheme, folder / f"{name}.png")
        browser.close()


def shot(browser: Browser, page: Path, width: int, scheme: str, file: Path) -> None:
    """The whole page, once everything in it is simulated."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.goto(page.as_uri() + EDIT)
    tab.wait_for_function("document.body.dataset.left === '0'")
    picture = Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")
    in_few_colours(picture).save(file, optimize=True)
    print(f"{file.name}: {picture.width} x {picture.height}, {file.stat().st_size / 1000:.0f} kB")
    tab.close()


def in_few_colours(picture: Image.Image) -> Image.Image:
    """A third of the size: with the 256 most frequent colours, which leaves flat areas as they are."""
    found = sorted(picture.getcolors(maxcolors=2**24), reverse=True)[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in found for part in colour])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
