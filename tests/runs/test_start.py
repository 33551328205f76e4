"""Whether runs start alike, by fingerprints or losses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simfluence.runs import RunSet
from simfluence.runs.start import start_alike

END = np.array([[1.0, 2.0], [1.5, 1.6], [0.7, 2.2]])


def by_losses(first, last=END):
    return start_alike([None] * len(first), list(np.asarray(first)), list(np.asarray(last)))


def test_fingerprints_decide_where_all_runs_have_them():
    unlike = np.array([[1.0, 2.0], [3.0, 2.0]])
    assert start_alike(["a", "a"], list(unlike), list(END[:2])) is True
    assert start_alike(["a", "b"], list(END[:1]) * 2, list(END[:2])) is False  # LoRA: no loss shows it
    assert start_alike(["a", None], list(unlike), list(END[:2])) is False
    assert start_alike(["a"], [None], [END[0]]) is True


@pytest.mark.parametrize(
    ("differences", "alike"),
    [(0.0, True), (1e-6, True), (1e-3, True), (0.1, False), (1.0, False)],
)
def test_initial_losses_that_differ_noticeably_beside_those_at_the_end(differences, alike):
    first = np.full((3, 2), 2.0) + differences * np.array([[1.0, 0.0], [0.0, -1.0], [-1.0, 1.0]])
    assert by_losses(first) is alike
    assert by_losses(1000 * first, 1000 * END) is alike  # whatever the units


def test_rounding_is_no_difference_where_runs_hardly_differ_at_the_end_either():
    noise = 1e-6 * np.array([[1.0, 0.0], [0.0, -1.0], [-1.0, 1.0]])
    assert by_losses(2 + noise, 1 + noise) is True
    assert by_losses(np.full((3, 2), 2.0), np.full((3, 2), 1.0)) is True


def test_losses_that_are_not_known():
    assert start_alike([None, None], [None, END[0]], list(END[:2])) is None
    assert by_losses(np.full((3, 2), np.nan)) is None
    partly = END[[0, 0, 0]].copy()
    partly[1, 0] = np.nan
    assert by_losses(partly) is True  # by the other test example
    partly[1, 1] += 1
    assert by_losses(partly) is False


def test_runs_that_begin_later_do_not_say():
    losses = np.stack([np.ones((3, 2)), np.ones((3, 2))])
    losses[1, 2] = 0.5
    runs = RunSet.from_arrays([[[0], [1]], [[1], [0]]], losses)
    assert runs.start_alike is True
    late = [
        dataclasses.replace(run, metrics={"loss": run.loss[1:]}, evaluated=run.evaluated[1:]) for run in runs
    ]
    assert RunSet(late, runs.train, runs.test).start_alike is None
