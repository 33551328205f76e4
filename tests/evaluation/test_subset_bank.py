"""Banks of retrained subsets: checked, saved and loaded."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from simfluence.errors import RunDataError
from simfluence.evaluation.standards import SubsetBank, random_subsets
from simfluence.runs.tables import TableFingerprints


@pytest.fixture
def bank() -> SubsetBank:
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(4, 3, 5)).astype(np.float32)
    losses[3, 2] = np.nan
    right = np.isfinite(losses) & (rng.random((4, 3, 5)) < 0.5)
    about = {"optimizer": "adamw at 1e-4", "model": "small", "task": "facts"}
    return SubsetBank(
        random_subsets(10, 0.5, 4), (0, 1, 7), losses, right, **about, tables=TableFingerprints("a", "b")
    )


def test_a_bank_is_saved_and_loaded(bank, tmp_path) -> None:
    bank.save(tmp_path / "bank.parquet")
    found = SubsetBank.load(tmp_path / "bank.parquet")
    for name in ("kept", "losses", "right"):
        np.testing.assert_array_equal(getattr(found, name), getattr(bank, name))
    for name in ("seeds", "optimizer", "model", "task", "tables"):
        assert getattr(found, name) == getattr(bank, name)
    assert found.describe() == "facts, small: 4 subsets of 50%, 3 seeds each, adamw at 1e-4"


def test_the_mean_over_seeds_waits_for_all_of_them(bank) -> None:
    assert bank.trained.sum() == 11
    assert np.isnan(bank.mean_losses()[3]).all()
    assert np.isnan(bank.share_right()[3]).all()
    np.testing.assert_allclose(bank.mean_losses()[:3], bank.losses[:3].mean(1))
    np.testing.assert_allclose(bank.share_right()[:3], bank.right[:3].mean(1))


def test_what_is_complete_are_the_seeds_that_all_subsets_have(bank) -> None:
    found = bank.complete()
    assert found.seeds == (0, 1)
    assert found.losses.shape == (4, 2, 5)
    bank.losses[2:] = np.nan
    assert len(bank.complete().kept) == 2
    assert bank.complete().seeds == (0, 1, 7)
    bank.losses[0, 1:] = bank.losses[1] = np.nan
    assert bank.complete().losses.shape == (1, 1, 5)
    bank.losses[:] = np.nan
    with pytest.raises(RunDataError, match="no subset of this bank is trained yet"):
        bank.complete()


def test_other_files_are_refused(bank, tmp_path) -> None:
    with pytest.raises(RunDataError, match="there is no file"):
        SubsetBank.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(RunDataError, match="no parquet file"):
        SubsetBank.load(tmp_path / "text.parquet")
    bank.save(tmp_path / "bank.parquet")
    table = pq.read_table(tmp_path / "bank.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "other.parquet")
    with pytest.raises(RunDataError, match="does not hold retrained subsets"):
        SubsetBank.load(tmp_path / "other.parquet")
    pq.write_table(table[:5], tmp_path / "cut.parquet")
    with pytest.raises(RunDataError, match="every subset with every seed"):
        SubsetBank.load(tmp_path / "cut.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": np.ones((4, 10))}, "kept must be bool"),
        ({"kept": np.zeros((4, 10), bool)}, "subset 0 keeps no example"),
        ({"seeds": (0, 1, 1)}, "every seed counts once"),
        ({"losses": np.zeros((4, 2, 5))}, r"losses must be \[4, 3, test\]"),
        ({"right": np.zeros((4, 3, 6), bool)}, "but right is"),
    ],
)
def test_what_does_not_agree_is_refused(bank, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        SubsetBank(**{**vars(bank), **change})


def test_random_subsets_keep_a_fraction() -> None:
    kept = random_subsets(20, 0.5, 300, seed=1)
    assert (kept.sum(1) == 10).all()
    np.testing.assert_allclose(kept.mean(0), 0.5, atol=0.12)
    assert len(np.unique(kept, axis=0)) > 290
    np.testing.assert_array_equal(kept, random_subsets(20, 0.5, 300, seed=1))
    with pytest.raises(ValueError, match="keeps some and leaves out some"):
        random_subsets(20, 0.99, 3)
