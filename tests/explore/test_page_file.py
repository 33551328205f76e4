"""The file that ``simfluence explore`` writes: what stands in it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simfluence import RunSet, verified
from simfluence.answer import WhatIf
from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.explore import inline, write_page
from simfluence.explore.page import as_json, kept_answers, page_data
from simfluence.fitted import Fitted, fit
from simfluence.runs import ExampleTable
from simfluence.simulators import make_simulator

RUNS = Path(__file__).parents[2] / "runs"


@pytest.fixture(scope="module")
def fitted(logistic) -> Fitted:
    return fit(logistic, make_simulator("mean_trajectory"), train=8, validation=0)


def data_of(file: Path) -> dict:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


def test_a_page_is_one_small_file_that_names_no_other(fitted, logistic, tmp_path) -> None:
    write_page(tmp_path / "page.html", fitted, logistic)
    text = (tmp_path / "page.html").read_text()
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert len(text.encode()) - len(data[1].encode()) < 250_000
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:,)""", text)
    assert "MIT License" in text  # uPlot's
    assert "innerHTML" not in inline.script()


def test_names_of_modules_do_not_meet() -> None:
    """They are written into one script, so names at the top of a module must differ from all others'."""
    names = re.findall(r"^(?:async )?(?:function\*?|class|const|let) (\w+)", inline.script(), re.MULTILINE)
    assert len(names) > 100
    assert len(set(names)) == len(names)
    assert set(inline.MODULES) == {file.stem for file in (Path(inline.__file__).parent / "web").glob("*.js")}


def test_imports_name_what_modules_export() -> None:
    web = Path(inline.__file__).parent / "web"
    for name in inline.MODULES:
        text = (web / f"{name}.js").read_text()
        for names, of in re.findall(
            r"^import \{(.*?)\} from \"\./(\w+)\.js\";", text, re.MULTILINE | re.DOTALL
        ):
            assert inline.MODULES.index(of) < inline.MODULES.index(name)
            exported = (web / f"{of}.js").read_text()
            for one in (word.strip() for word in names.split(",") if word.strip()):
                assert re.search(
                    rf"^export (?:async )?(?:function\*?|class|const) {one}\b", exported, re.MULTILINE
                )
                assert re.search(rf"\b{one}\b", text.split(f'"./{of}.js";')[1])  # and it is used


def test_json_ends_no_script() -> None:
    text = as_json({"title": "</script><!--", "values": np.array([np.nan, 1.0])})
    assert "<" not in text
    assert json.loads(text)["title"] == "</script><!--"
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"value": np.nan})
    with pytest.raises(TypeError, match="a set cannot be written"):
        as_json({"value": {1}})


def test_texts_are_written_only_when_asked_for(fitted, logistic, tmp_path) -> None:
    with pytest.raises(RunDataError, match="holds no texts"):
        write_page(tmp_path / "page.html", fitted, logistic, texts=True)
    assert not (tmp_path / "page.html").exists()
    told = logistic.train.frame.assign(text="a secret")
    runs = RunSet(logistic.runs, ExampleTable(told), logistic.test)
    own = fit(runs, make_simulator("mean_trajectory"), train=8, validation=0)
    write_page(tmp_path / "page.html", own, runs)
    assert "secret" not in (tmp_path / "page.html").read_text()
    write_page(tmp_path / "page.html", own, runs, texts=True)
    assert data_of(tmp_path / "page.html")["train"]["texts"] == ["a secret"] * 24


def test_what_the_page_cannot_compute_is_refused(logistic) -> None:
    simulator = make_simulator("scores", scores=np.ones((24, 6)))
    with pytest.raises(ValueError, match="cannot compute the simulator 'scores'; it takes auto, effects"):
        page_data(fit(logistic, simulator, train=8, validation=0), logistic)
    shares = Curriculum.from_shares(np.full((3, 2), 0.5))
    runs = RunSet.from_arrays([shares] * 3, np.ones((3, 4, 2)), train=2)
    with pytest.raises(ValueError, match="does not take runs on shares of groups yet"):
        page_data(Fitted(make_simulator("mean_trajectory").fit(runs)), runs)


def test_other_examples_are_refused(fitted, runs) -> None:
    with pytest.raises(RunDataError, match="fit it to runs over the same examples"):
        page_data(fitted, runs)


def test_quality_is_that_of_runs_that_were_not_seen(fitted, logistic) -> None:
    found = page_data(fitted, logistic)["quality"]
    assert found["runs"] == ["run-008", "run-009"]
    assert len(found["true"]) == 2 * 6
    np.testing.assert_allclose(found["true"][:6], logistic[8].loss[-1])
    mean = fitted.simulator.simulate([logistic[8].curriculum], logistic[8].initial_loss)[0, len(logistic[8])]
    np.testing.assert_allclose(found["predicted"][:6], mean)
    assert found["skill"] == pytest.approx(0)  # of the mean trajectory itself
    assert all(0 <= share <= 1 for share in found["held"])
    assert page_data(fitted, logistic[:8])["quality"] is None


def test_a_run_that_the_simulator_has_seen_is_said(fitted, logistic) -> None:
    assert "choose a run that it has not seen" in page_data(fitted, logistic, "run-000")["fitNotes"][0]
    assert page_data(fitted, logistic)["fitNotes"] == []


def test_retrained_edits_are_in_the_page(logistic, tmp_path) -> None:
    runs = RunSet([logistic[0]], logistic.train, logistic.test)
    runs.save(tmp_path)
    changes = pd.DataFrame(
        {"id": runs.test.ids, "change": 0.1, "low": 0.0, "high": 0.2, "true_change": np.arange(6.0)}
    )
    curriculum = runs[0].curriculum
    answer = WhatIf(curriculum, curriculum, runs[0].loss, runs[0].loss, changes, level=0.9)
    verified.keep(tmp_path, "run-000", "remove red", "auto", answer)
    verified.keep(
        tmp_path, "run-000", "repeat red times 2", "auto", dataclasses.replace(answer, schedule="keep")
    )
    found = kept_answers(tmp_path, "run-000")
    assert found == {"remove red": {name: float(at) for at, name in enumerate(runs.test.ids)}}
    assert kept_answers(tmp_path, "run-001") == {}


def test_the_command_writes_a_page(simfluence, logistic, tmp_path) -> None:
    logistic.save(tmp_path / "mine")
    options = ["path=mine", "simulator=mean_trajectory", "train=8", "validation=0"]
    done = simfluence("explore", *options, "output=page.html", "title=My first page, and more", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "open it in a browser" in done.stdout
    data = data_of(tmp_path / "page.html")
    assert data["title"] == "My first page, and more"
    assert data["run"]["id"] == "run-009"
    done = simfluence("fit", *options, "output=mean.safetensors", cwd=tmp_path)
    done = simfluence("explore", "path=mine", "simulator=mean.safetensors", "output=again.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert data_of(tmp_path / "again.html")["bands"] == data["bands"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "output has no value: name the page to write"),
        (["output=page.pdf"], "must end in one of .html"),
        (["output=nowhere/page.html"], "which is no folder"),
        (["output=page.html", "run_id=run-999"], "run-999"),
        (["output=page.html", "texts=perhaps"], "texts must be true or false"),
        (["output=page.html", "texts=true", "simulator=persistence"], "holds no texts"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    options, message, simfluence, logistic, tmp_path
) -> None:
    logistic.save(tmp_path / "mine")
    done = simfluence("explore", "path=mine", "train=8", "validation=0", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.glob("*.html"))
