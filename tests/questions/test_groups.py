"""The matrix of groups against what-ifs asked one by one."""

import numpy as np
import pytest

from simfluence import Edit, RunSet, fit, what_if
from simfluence.questions.groups import group_matrix
from simfluence.simulators import make_simulator


@pytest.fixture(scope="module")
def asked():
    runs = RunSet.load("runs/openbookqa-minilm")
    return runs, fit(runs[list(range(10))], make_simulator("auto"), train=8), runs[31]


def test_every_cell_is_a_what_if(asked):
    runs, fitted, run = asked
    matrix = group_matrix(fitted, run, train=runs.train, test=runs.test)
    assert matrix.attrs["notes"] == ["run-031 never used the groups why"]
    edits = {"remove": Edit("remove", groups="which"), "double": Edit("repeat", groups="which", times=2)}
    for name, edit in edits.items():
        answer = what_if(fitted, run, edit, train=runs.train, test=runs.test)
        of = matrix[(matrix["edit"] == name) & (matrix["group"] == "which")].set_index("test")
        of = of.loc[answer.groups.index]
        columns = ["change", "low", "high"]
        np.testing.assert_allclose(of[columns], answer.groups[columns].astype(float), atol=1e-9)
        assert list(of["verdict"]) == list(answer.groups["verdict"])
    wide = matrix[matrix["edit"] == "remove"].pivot(index="group", columns="test", values="change")
    assert wide.shape == (7, 5)
    assert np.isfinite(wide.to_numpy()).all()


def test_it_takes_one_edit_and_one_set_of_test_examples(asked):
    runs, fitted, run = asked
    matrix = group_matrix(fitted, run, train=runs.train, test=runs.test, of="which", edits=["remove"])
    assert set(matrix["edit"]) == {"remove"}
    assert set(matrix["test"]) == {"which"}
    with pytest.raises(ValueError, match="edits are 'remove' and 'double', got 'triple'"):
        group_matrix(fitted, run, train=runs.train, test=runs.test, edits=["triple"])
    with pytest.raises(ValueError, match="named 'nobody'"):
        group_matrix(fitted, run, train=runs.train, test=runs.test, of="nobody")
