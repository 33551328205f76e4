"""Figures show what the frames say: positions, colours by group, few lines for many test examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simfluence import RunSet, plots
from simfluence.attribution import InfluenceScores, sparsity


def test_groups_have_colours_of_their_own_and_the_smallest_of_many_are_one() -> None:
    shown, colour = plots.shown_groups(["a", "b", "a", ""])
    assert shown == ["a", "b", "a", "test examples"]
    assert len(set(colour.values())) == 3
    many = [f"g{i}" for i in range(10) for _ in range(10 - i)]
    shown, colour = plots.shown_groups(many)
    assert list(colour) == [f"g{i}" for i in range(5)] + ["other groups"]
    assert len(set(colour.values())) == 6
    assert shown.count("other groups") == sum(range(1, 6))


def test_recorded_losses_are_summarised_however_many_they_are(runs: RunSet) -> None:
    run = runs[0]
    groups = ["a", "b", "a", "b"]
    axis = plots.recorded_losses(run, groups).axes[0]
    drawn = {str(line.get_label()): line for line in axis.lines}
    assert set(drawn) == {"a (2)", "b (2)", "mean of all"}
    np.testing.assert_allclose(drawn["b (2)"].get_ydata(), run.loss[:, [1, 3]].mean(1))
    np.testing.assert_allclose(drawn["mean of all"].get_ydata(), run.loss.mean(1))
    ribbon = axis.collections[0].get_paths()[0].get_extents()
    assert ribbon.ymin == pytest.approx(np.quantile(run.loss, 0.1, axis=1).min())
    assert ribbon.ymax == pytest.approx(np.quantile(run.loss, 0.9, axis=1).max())
    assert [line.get_label() for line in plots.recorded_losses(run).axes[0].lines] == ["mean of all"]


def test_a_mean_is_over_the_same_test_examples_at_every_step(runs: RunSet) -> None:
    """Of losses on straight lines, those evaluated in turn have the means of all."""
    run = runs[0]
    lines = np.linspace(1.0, 2.0, len(run.evaluated))[:, None] * np.arange(1, run.loss.shape[1] + 1)
    in_turn = lines.copy()
    in_turn[1:-1:2, 0] = in_turn[2:-1:2, 1] = np.nan
    axis = plots.recorded_losses(dataclasses.replace(run, metrics={"loss": in_turn})).axes[0]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), lines.mean(1))


def frame(n: int) -> pd.DataFrame:
    change = np.random.default_rng(0).normal(size=n)
    return pd.DataFrame(
        {
            "id": [f"z{i}" for i in range(n)],
            "group": ["a" if i % 2 else "b" for i in range(n)],
            "change": change,
            "low": change - 1,
            "high": change + 2,
        }
    )


def test_predicted_changes_have_names_and_bands() -> None:
    changes = frame(5)
    axis = plots.predicted_changes(changes, 0.9).axes[0]
    ordered = changes.sort_values("change")
    assert [label.get_text() for label in axis.get_yticklabels()] == list(ordered["id"])
    assert "90% band" in axis.get_xlabel()
    for group, bars in zip(("a", "b"), sorted(axis.containers, key=lambda bar: bar.get_label()), strict=True):
        rows = ordered[ordered["group"] == group]
        assert bars.get_label() == group
        np.testing.assert_allclose(np.array(bars[0].get_xdata(), float), rows["change"])
        edges = np.array([segment[:, 0] for segment in bars[2][0].get_segments()])
        np.testing.assert_allclose(edges, rows[["low", "high"]])


def test_bands_of_many_test_examples_are_one_ribbon() -> None:
    axis = plots.predicted_changes(frame(100), 0.9).axes[0]
    assert all(len(bars[2]) == 0 for bars in axis.containers)
    assert not [label.get_text() for label in axis.get_yticklabels() if label.get_text()]
    ribbon = axis.collections[0].get_paths()[0].get_extents()
    assert (ribbon.xmin, ribbon.xmax) == (frame(100)["low"].min(), frame(100)["high"].max())


def test_changes_without_bands_are_drawn_too() -> None:
    for changes in (frame(5), frame(100), frame(5).assign(true_change=0.0)):
        figure = plots.predicted_changes(changes.drop(columns=["low", "high"]))
        assert "band" not in figure.axes[0].get_xlabel()


def test_verified_changes_stand_against_the_true_ones() -> None:
    changes = frame(5).assign(true_change=np.arange(5.0))
    axis = plots.predicted_changes(changes, 0.9).axes[0]
    points = np.concatenate([np.column_stack(bars[0].get_data()) for bars in axis.containers])
    assert sorted(points[:, 1]) == list(range(5))


def test_tails_are_a_median_and_a_range(tmp_path: Path) -> None:
    values = np.random.default_rng(0).exponential(size=(50, 30))
    scores = InfluenceScores(values, "mine")
    figure = plots.influence_tails(scores, sparsity(scores))
    (median,) = figure.axes[0].lines
    ordered = -np.sort(-values, axis=0)
    np.testing.assert_allclose(median.get_ydata(), np.median(ordered / ordered[0], axis=1))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        plots.save(figure, tmp_path / folder, "tails")
    for name in ("tails.png", "tails.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
