"""Scores of other libraries, turned the right way round."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from simfluence.attribution import InfluenceScores, import_scores
from simfluence.errors import RunDataError

OURS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])  # [train, test]


def test_libraries() -> None:
    turned = {"query 1": torch.tensor(OURS.T), "query 2": torch.tensor(OURS.T)}  # one a module
    np.testing.assert_array_equal(import_scores(turned, library="kronfluence").scores, 2 * OURS)
    captum = import_scores(torch.tensor(OURS.T, dtype=torch.bfloat16), library="captum")
    np.testing.assert_array_equal(captum.scores, OURS)
    np.testing.assert_array_equal(import_scores(OURS, library="trak", shape=(2, 3)).scores, OURS)
    np.testing.assert_array_equal(import_scores(OURS, library="dattri").scores, OURS)


def test_orientation_and_sign_are_said() -> None:
    scores = import_scores(-OURS.T, orientation="test,train", positive="raises", method="mine", units="nats")
    np.testing.assert_array_equal(scores.scores, OURS)
    assert (scores.method, scores.units, scores.provenance["positive"]) == ("mine", "nats", "raises")
    with pytest.raises(ValueError, match="say what the array is: library="):
        import_scores(OURS)
    with pytest.raises(ValueError, match="say what the array is"):
        import_scores(OURS, orientation="train,test")
    with pytest.raises(ValueError, match="library must be one of"):
        import_scores(OURS, library="crystal ball")
    with pytest.raises(ValueError, match=r"= \(2, 3\), got \(3, 2\); it would fit the other way round"):
        import_scores(OURS, library="captum", shape=(2, 3))
    with pytest.raises(ValueError, match="two axes"):
        import_scores(OURS[0], library="trak")
    with pytest.raises(ValueError, match="numbers"):
        import_scores(OURS.astype(str), library="trak")


def test_files(tmp_path) -> None:
    np.save(tmp_path / "a.npy", OURS)
    np.savez(tmp_path / "a.npz", scores=OURS)
    save_file({"all_modules": np.ascontiguousarray(OURS.T)}, tmp_path / "pairwise_scores.safetensors")
    for name, library in (
        ("a.npy", "trak"),
        ("a.npz", "trak"),
        ("pairwise_scores.safetensors", "kronfluence"),
    ):
        scores = import_scores(tmp_path / name, library=library)
        np.testing.assert_array_equal(scores.scores, OURS)
        assert scores.provenance["file"] == name


def test_files_that_are_no_scores(tmp_path) -> None:
    torch.save(torch.tensor(OURS), tmp_path / "scores.pt")
    with pytest.raises(RunDataError, match="pickled"):
        import_scores(tmp_path / "scores.pt", library="trak")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RunDataError, match=r"objects\.npy"):
        import_scores(tmp_path / "objects.npy", library="trak")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(RunDataError, match=r"torn\.safetensors"):
        import_scores(tmp_path / "torn.safetensors", library="kronfluence")


def bergson(folder, written: bool = True, **info) -> None:
    """A score directory of two documents and three queries, as bergson 2.5 lays it out."""
    layout = {"names": [], "formats": [], "offsets": [], "itemsize": 32}
    for query in range(3):
        layout["names"] += [f"score_{query}", f"written_{query}"]
        layout["formats"] += ["float32", "bool"]
        layout["offsets"] += [8 * query, 8 * query + 4]
    rows = np.zeros(2, np.dtype(layout))
    for query in range(3):
        rows[f"score_{query}"], rows[f"written_{query}"] = OURS[:, query], written
    folder.mkdir()
    rows.tofile(folder / "scores.bin")
    about = {"attribute_tokens": False, "num_items": 2, "num_rows": 2, "num_scores": 3, "dtype": layout}
    (folder / "info.json").write_text(json.dumps({**about, **info}))


def test_a_bergson_directory(tmp_path) -> None:
    bergson(tmp_path / "whole")
    np.testing.assert_array_equal(import_scores(tmp_path / "whole", library="bergson").scores, OURS)
    bergson(tmp_path / "half", written=False)
    with pytest.raises(RunDataError, match="score_0 is not complete"):
        import_scores(tmp_path / "half", library="bergson")
    bergson(tmp_path / "tokens", attribute_tokens=True)
    with pytest.raises(RunDataError, match="by token"):
        import_scores(tmp_path / "tokens", library="bergson")


def test_a_damaged_description_is_named(tmp_path) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / "scores.safetensors"
    for about in ("{}", "torn", '{"method": "m", "covers": [], "surprise": 1}'):
        save_file({"scores": np.ones((2, 2))}, file, {"format": "simfluence scores 1", "about": about})
        with pytest.raises(RunDataError, match="does not say what its scores are"):
            InfluenceScores.load(file)
