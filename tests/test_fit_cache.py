"""A fit is made once: the file beside the set gives the same answers, until anything changes."""

import shutil

import numpy as np
import pytest

from simfluence import RunSet
from simfluence.fit_cache import FOLDER, KEPT, fit_once
from simfluence.simulators import make_simulator


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "mine"
    shutil.copytree(
        "runs/openbookqa-minilm", folder, ignore=shutil.ignore_patterns("run-01*", "run-02*", FOLDER)
    )
    return folder, RunSet.load(folder)


def files(folder):
    return sorted((folder / FOLDER).glob("*.safetensors"))


def test_the_second_time_the_fit_is_read(recorded, monkeypatch):
    folder, runs = recorded
    first, said = fit_once(folder, runs, make_simulator("additive"), train=6, held_out="run-031")
    assert "kept" in said
    monkeypatch.setattr("simfluence.fit_cache.fit", lambda *args, **options: pytest.fail("fitted again"))
    second, said = fit_once(folder, runs, make_simulator("additive"), train=6, held_out="run-031")
    assert "before" in said
    assert second.runs == first.runs
    assert second.notes == first.notes
    run = runs[0]
    one, other = (each.simulator.simulate([run.curriculum], run.initial_loss) for each in (first, second))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.bands.scale_, second.bands.scale_)


@pytest.mark.parametrize(
    ("name", "params", "options"),
    [
        ("additive", {"penalty": 2.0}, {}),
        ("linear", {}, {}),
        ("additive", {}, {"level": 0.5}),
        ("additive", {}, {"held_out": "run-000"}),
        ("additive", {}, {"validation": 1}),
        ("scores", {"scores": np.ones((200, 40))}, {}),
        ("scores", {"scores": np.eye(200, 40)}, {}),
    ],
)
def test_anything_that_changes_the_fit_makes_another_file(recorded, name, params, options):
    folder, runs = recorded
    fit_once(folder, runs, make_simulator("additive"), train=6)
    before = files(folder)
    _, said = fit_once(folder, runs, make_simulator(name, **params), **{"train": 6, **options})
    assert "kept" in said
    assert set(files(folder)) - set(before)


def test_a_damaged_file_is_fitted_again(recorded):
    folder, runs = recorded
    fit_once(folder, runs, make_simulator("additive"), train=5)
    newest = max(files(folder), key=lambda file: file.stat().st_mtime)
    newest.write_bytes(newest.read_bytes()[:100])
    _, said = fit_once(folder, runs, make_simulator("additive"), train=5)
    assert "kept" in said
    _, said = fit_once(folder, runs, make_simulator("additive"), train=5)
    assert "before" in said


def test_the_folder_does_not_grow_without_end(recorded):
    folder, runs = recorded
    for train in range(2, KEPT + 4):
        fit_once(folder, runs, make_simulator("additive"), train=train % 8 + 1, level=0.5 + train / 100)
    assert len(files(folder)) == KEPT


def test_a_set_that_cannot_be_written_is_fitted_all_the_same(recorded):
    _, runs = recorded
    fitted, said = fit_once("/proc/nowhere", runs, make_simulator("additive"), train=6)
    assert said == ""
    assert fitted.bands is not None
