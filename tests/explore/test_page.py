"""The page, driven in headless Chromium: what it computes, that its controls do what they say, that it asks
no network, and that it can be used without a mouse and by screen readers.

Skipped where Playwright or Chromium is missing; ``make test-page`` installs both.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from explore_questions import ASK, TOLERANCE, asked, largest_difference

from simfluence import RunSet
from simfluence.edit import Edit
from simfluence.explore import write_page
from simfluence.fitted import Fitted, fit
from simfluence.simulators import make_simulator

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: make test-page does it"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(sys.prefix) / "axe/node_modules/axe-core/axe.min.js"
RUNS = Path(__file__).parents[2] / "runs"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: make test-page does it")

SETS: dict[str, tuple[str, bool, list[list[dict[str, Any]]]]] = {
    "openbookqa": (
        "openbookqa-minilm",
        False,
        [
            [{"name": "remove", "groups": ["completion"]}],
            [
                {"name": "remove", "groups": ["what"], "ids": ["openbookqa-145"]},
                {"name": "repeat", "groups": ["which"], "times": 3},
            ],
            [
                {"name": "put_before", "groups": ["which"], "before_groups": ["completion", "what"]},
                {"name": "length", "steps": 60},
            ],
            [{"name": "length", "steps": 150}],
        ],
    ),
    "rte with scores": (
        "rte-minilm",
        True,
        [
            [{"name": "remove", "groups": ["dev"]}],
            [{"name": "repeat", "groups": ["dev"], "times": 5}],
            [{"name": "put_before", "groups": ["dev"], "before_groups": ["train"]}],
        ],
    ),
}
"""Run set, whether with scores, and edits."""


@pytest.fixture(scope="session")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM)
        yield running
        running.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page from disk; fails for errors, words in the console, and requests to anything but files."""
    trouble: list[str] = []
    contexts = []

    def open_page(file: Path, fragment: str = "", **settings: Any) -> Any:
        context = browser.new_context(accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # a busy machine is no failure
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))

        def route(request: Any) -> None:
            if request.request.url.startswith(("file:", "blob:", "data:")):
                request.continue_()
            else:
                trouble.append(f"request: {request.request.url}")
                request.abort()

        page.route("**/*", route)
        page.goto(f"{file.as_uri()}{fragment}")
        page.wait_for_function("document.body.dataset.left === '0'", polling=20)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture(scope="session")
def small(logistic: RunSet, tmp_path_factory) -> tuple[Fitted, Path]:
    """A fit of the logistic runs, and its page."""
    fitted = fit(logistic, make_simulator("effects", penalty=3.0), train=8, validation=0)
    file = tmp_path_factory.mktemp("page") / "small.html"
    write_page(file, fitted, logistic, title="<script>alert(1)</script> & more")
    return fitted, file


def answer_to(page: Any, edits: list[dict[str, Any]], schedule: str = "stretch") -> dict[str, Any]:
    """What the page's own functions answer."""
    code = f"([edits, schedule]) => {{ const page = simfluence.page; {ASK} }}"
    found: dict[str, Any] = page.evaluate(code, [edits, schedule])
    return found


def settled(page: Any) -> None:
    """Waits until the page has answered the last change."""
    page.wait_for_function("!simfluence.waiting && !simfluence.again", polling=20)


def shown_change(page: Any) -> float:
    return float(page.inner_text("#change").replace("\u2212", "-"))


def mean_change(answer: Any) -> float:
    return float(answer.changes["change"].mean())


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", SETS)
def test_the_page_gives_pythons_numbers(name, opened, tmp_path) -> None:
    folder, with_scores, questions = SETS[name]
    runs = RunSet.load(RUNS / folder)
    scores = None
    if with_scores:
        from simfluence.attribution import InfluenceScores

        scores = InfluenceScores.load(RUNS / folder / "scores.safetensors")
    fitted = fit(runs, make_simulator("auto", scores=scores), held_out=runs[-1].id)
    write_page(tmp_path / "page.html", fitted, runs)
    page = opened(tmp_path / "page.html")
    for edits in questions:
        assert largest_difference(answer_to(page, edits), asked(fitted, runs, edits, "stretch")) < TOLERANCE
        took = page.evaluate(
            "edits => { const at = performance.now(); wholeAnswer(simfluence.page, edits, 'stretch');"
            " return performance.now() - at; }",
            edits,
        )
        print(f"{name}: {took:.0f} ms")
    removals = page.evaluate(
        "[...simfluence.removals.examples.entries()].map(([at, {change}]) => [at, [...change]])"
    )
    row, change = max(removals, key=lambda of: abs(sum(of[1])))
    one = asked(fitted, runs, [{"name": "remove", "ids": [runs.train.ids[row]]}], "stretch")
    np.testing.assert_allclose(change, one.changes["change"], atol=1e-6)
    group = questions[0][0]["groups"][0]  # the first question removes a group
    without = asked(fitted, runs, questions[0], "stretch")
    code = "name => simfluence.removals.groups.get(simfluence.page.train.groupNames.indexOf(name)).means"
    means = page.evaluate(code, group)
    assert without.means is not None
    for found, said in zip(means, without.means.itertuples(), strict=True):
        assert (found["low"], found["high"]) == pytest.approx((said.low, said.high), abs=1e-6)
        assert found["verdict"] == said.verdict


# --------------------------------------------------------------------------------------------- controls


def test_groups_and_examples_are_switched_off_and_repeated(opened, small, logistic) -> None:
    fitted, file = small
    page = opened(file)
    assert page.inner_text("#band") == "nothing changed yet"
    page.click('[data-group="red"] input[type=checkbox]')
    settled(page)
    edits: list[dict[str, Any]] = [{"name": "remove", "groups": ["red"]}]
    assert shown_change(page) == pytest.approx(
        mean_change(asked(fitted, logistic, edits, "stretch")), abs=1e-3
    )
    page.fill("#examples-search", "q-1")
    page.click('[aria-label="use q-1"]')
    page.fill('[data-group="green"] input[type=number]', "3")
    page.press('[data-group="green"] input[type=number]', "Enter")
    settled(page)
    edits = [
        {"name": "remove", "groups": ["red"], "ids": ["q-1"]},
        {"name": "repeat", "groups": ["green"], "times": 3},
    ]
    assert shown_change(page) == pytest.approx(
        mean_change(asked(fitted, logistic, edits, "stretch")), abs=1e-3
    )
    assert page.evaluate("simfluence.answer.made") == edits
    page.click("#reset")
    settled(page)
    assert page.inner_text("#edit-words").startswith("Nothing yet")


def test_the_focus_and_what_is_typed_stay(opened, small) -> None:
    page = opened(small[1])
    active = "document.activeElement.dataset.key"
    page.focus('[data-group="red"] input[type=checkbox]')
    page.keyboard.press("Space")
    settled(page)
    assert page.evaluate(active) == "use red"
    page.focus('[data-group="green"] input[type=number]')
    page.keyboard.press("Control+A")
    page.keyboard.type("12")
    page.evaluate("simfluence.draw()")
    assert page.input_value('[data-group="green"] input[type=number]') == "12"
    page.keyboard.press("Enter")
    settled(page)
    assert page.evaluate("simfluence.answer.made")[1]["times"] == 12
    page.fill("#examples-search", "q-2")
    page.focus('[aria-label="use q-2"]')
    page.keyboard.press("Space")
    settled(page)
    assert page.evaluate(active) == "use q-2"


def test_without_groups_and_bands(opened, runs, tmp_path) -> None:
    fitted = fit(runs, make_simulator("linear", penalty=1.0), train=6, validation=0, level=None)
    write_page(tmp_path / "page.html", fitted, runs)
    page = opened(tmp_path / "page.html")
    page.click('[aria-label="use 3"]')
    settled(page)
    answer = asked(fitted, runs, [{"name": "remove", "ids": ["3"]}], "stretch")
    assert shown_change(page) == pytest.approx(mean_change(answer), abs=1e-2)
    assert "fitted without" in page.inner_text("#band")
    assert page.is_hidden("#matrix-card")
    assert page.is_hidden("#order")


def test_groups_are_brought_into_an_order_with_keys_and_by_dragging(opened, small, logistic) -> None:
    fitted, file = small
    page = opened(file)
    page.focus('[data-group="green"] [data-move="-1"]')
    page.keyboard.press("Enter")
    settled(page)
    assert page.is_checked("#order-groups")
    assert page.evaluate("document.activeElement.closest('li').dataset.group") == "green"  # the focus stays
    assert page.evaluate("simfluence.state.order") == ["green", "red", "blue & <b>", ""]
    page.drag_and_drop('[data-group="blue & <b>"] .grip', '[data-group="green"] .grip')
    settled(page)
    order = ["blue & <b>", "green", "red", ""]
    assert page.evaluate("simfluence.state.order") == order
    edits = [
        {"name": "put_before", "groups": [one], "before_groups": order[at + 1 :]}
        for at, one in enumerate(order[:-1])
    ]
    assert shown_change(page) == pytest.approx(
        mean_change(asked(fitted, logistic, edits, "stretch")), abs=1e-3
    )
    stream = page.evaluate("[...simfluence.answer.curriculum.examples]")
    of_group = [order.index(logistic.train.groups[row]) for row in stream]
    assert of_group == sorted(of_group)


def test_the_run_is_shortened_and_the_schedule_chosen(opened, small, logistic) -> None:
    fitted, file = small
    page = opened(file)
    page.fill("#steps", "20")
    page.press("#steps", "Enter")
    page.check("#schedule-keep")
    settled(page)
    edits = [{"name": "length", "steps": 20, "schedule": "keep"}]
    answer = asked(fitted, logistic, edits, "keep")
    assert shown_change(page) == pytest.approx(mean_change(answer), abs=1e-3)
    assert "20 steps" in page.inner_text("#length")
    ended = page.inner_text("#kept").split("as recorded changes by ")[1].split(". ")[0]
    assert float(ended.replace("\u2212", "-")) == pytest.approx(answer.of_length.mean(), abs=1e-3)
    page.focus("#steps-slider")
    page.keyboard.press("ArrowRight")
    settled(page)
    assert page.evaluate("simfluence.answer.made")[0]["steps"] == 21


def test_an_edit_that_leaves_nothing_says_so(opened, small, logistic) -> None:
    page = opened(small[1])
    for group in ("red", "green", "blue & <b>", ""):
        page.click(f'[data-group="{group}"] input[type=checkbox]')
    page.wait_for_selector("#problem:not([hidden])")
    assert "nothing to train on" in page.inner_text("#problem")
    page.click("#reset")
    settled(page)
    assert page.is_hidden("#problem")


# ------------------------------------------------------------------------------------- links and files


def test_a_link_brings_everything_back(opened, small) -> None:
    page = opened(small[1])
    page.click('[data-group="red"] input[type=checkbox]')
    page.click('[data-group="blue & <b>"] [data-move="-1"]')
    page.fill('[data-group="green"] input[type=number]', "2")
    page.press('[data-group="green"] input[type=number]', "Enter")
    page.fill("#steps", "25")
    page.press("#steps", "Enter")
    page.check("#schedule-keep")
    page.select_option("#show", "group:green")
    settled(page)
    again = opened(small[1], page.evaluate("location.hash"))
    for what in ("answer.made", "answer.change", "state.order", "state.shown"):
        assert json.dumps(again.evaluate(f"simfluence.{what}")) == json.dumps(
            page.evaluate(f"simfluence.{what}")
        )
    assert again.inner_text("#change") == page.inner_text("#change")
    stranger = opened(small[1], "#without=nobody&without-id=x&times-9=nobody&steps=-3&show=y&then=z")
    assert stranger.inner_text("#band") == "nothing changed yet"


def test_the_edit_is_downloaded_as_yaml(opened, small, logistic) -> None:
    page = opened(small[1])
    page.click('[data-group="blue & <b>"] input[type=checkbox]')
    settled(page)
    with page.expect_download() as download:
        page.click("#download")
    (edits,) = yaml.safe_load(Path(download.value.path()).read_text()).values()
    assert edits == [{"name": "remove", "groups": ["blue & <b>"]}]
    assert Edit(**edits[0]).apply(logistic[-1], logistic.train)


# ------------------------------------------------------------------------------- looking and listening


def test_tables_are_searched_filtered_and_sorted(opened, small) -> None:
    page = opened(small[1])
    ids = "[...document.querySelectorAll('#examples .id')].map(one => one.textContent)"
    page.select_option("#examples-group", "=red")
    found = page.evaluate(ids)
    assert set(found) <= {f"q-{i}" for i in range(0, 24, 4)}
    effect = """id => {
        const row = simfluence.page.train.ids.indexOf(id);
        return simfluence.removals.examples.get(row).change.reduce((a, b) => a + b);
    }"""
    effects = [page.evaluate(effect, one) for one in found]
    assert effects == sorted(effects, reverse=True)
    page.select_option("#examples-sort", "harmful")
    assert page.evaluate(ids) == found[::-1]
    page.fill("#examples-search", "q-8")
    assert page.evaluate(ids) == ["q-8"]


def test_a_test_example_is_looked_at_alone(opened, small, logistic) -> None:
    fitted, file = small
    page = opened(file, "#without=red")
    page.click("summary")
    page.check('[aria-label="look at t-2"]')
    answer = asked(fitted, logistic, [{"name": "remove", "groups": ["red"]}], "stretch")
    assert shown_change(page) == pytest.approx(answer.changes["change"][2], abs=1e-3)
    assert page.inner_text("#of-what") == "t-2"


def test_retrained_changes_are_drawn_beside_the_predicted(opened, small, logistic, tmp_path) -> None:
    true = dict.fromkeys(logistic.test.ids, 0.5)
    write_page(tmp_path / "page.html", small[0], logistic, retrained={"remove red": true})
    page = opened(tmp_path / "page.html", "#without=red")
    assert page.locator("#changes .truth").count() == len(logistic.test)
    assert page.is_visible("#changes-truth")
    page.hover("#changes svg")
    assert "retrained +0.5" in page.inner_text("#changes-read")
    page.click('[data-group="green"] input[type=checkbox]')
    settled(page)
    assert page.locator("#changes .truth").count() == 0


def test_names_and_titles_are_text(opened, small) -> None:
    page = opened(small[1])
    assert page.inner_text("h1") == "<script>alert(1)</script> & more"
    assert page.locator("b").count() == 0
    assert page.inner_text('[data-group="blue & <b>"] .name').strip() == "blue & <b>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_serious_is_found_by_axe(scheme, width, opened, small) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed: make test-page does it")
    page = opened(small[1], "#without=red", color_scheme=scheme, viewport={"width": width, "height": 900})
    page.click("summary")
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run().then(({violations}) => violations)")
    serious = [
        (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # no scrolling to the side


def test_the_theme_is_switched(opened, small) -> None:
    page = opened(small[1], color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) != light
    assert page.inner_text("#theme") == "Light"
