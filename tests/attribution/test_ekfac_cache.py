"""What EK-FAC keeps, in memory and on disk, changes nothing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import CASES, bert, gpt2, texts

from simfluence.attribution import EKFACFactors, ekfac, ekfac_factors
from simfluence.attribution.ekfac.cache import GradientCache
from simfluence.attribution.gradient_parts import Outer, Summed
from simfluence.attribution.tracing import Traced, Tracer
from simfluence.errors import RunDataError


@pytest.mark.parametrize("case", ["network", "bert choices", "gpt2", "bert ia3", "t5"])
@pytest.mark.parametrize("fisher", ["empirical", "true"])
def test_what_is_kept_in_memory_changes_nothing(case: str, fisher: Any) -> None:
    """Not even how many batches of two fit."""
    objective, examples = CASES[case]()
    train, test = examples[:-1], examples[2:]
    options = {"fisher": fisher, "batch_size": 2}
    factors = ekfac_factors(objective, train, **options, memory=0)
    expected = ekfac(objective, train, test, factors=factors, batch_size=2).scores
    for memory in (0, 4_000, 2**31):
        for rank, error in ((None, 1e-9), (8, 1e-7)):
            found = ekfac(objective, train, test, **options, memory=memory, rank=rank).scores
            assert np.abs(found - expected).max() <= error * np.abs(expected).max()


def test_a_gradient_cache() -> None:
    """All or none, each with memory of its own, and what is shared once."""
    shared = torch.ones(2, 3, 4)
    batch = Traced(torch.zeros(2), {"a": [Outer(shared, shared)], "b": [Summed(shared)]})
    cached, too_many = GradientCache(4, 4 * 24 * 2), GradientCache(4, 4 * 24 * 2 - 1)
    for each in (cached, too_many):
        each.add(batch, copy=True)
        assert not each.complete
        each.add(batch, copy=True)
    assert (cached.complete, too_many.complete) == (True, False)
    shared.zero_()
    assert [float(found.parts["b"][0].values.sum()) for found in cached.taken()] == [24, 24]
    assert list(cached.taken()) == list(too_many.taken()) == []


def test_saved_factors_give_the_same_scores_and_refuse_other_weights(tmp_path) -> None:
    model, examples = gpt2(), texts(5)
    factors = ekfac_factors(model, examples)
    factors.save(tmp_path / "factors.safetensors")
    loaded = EKFACFactors.load(tmp_path / "factors.safetensors", model)
    expected = ekfac(model, examples[:3], examples[3:], factors=factors)
    found = ekfac(model, examples[:3], examples[3:], factors=loaded)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-10)
    assert loaded.about == factors.about
    assert loaded.coverage.equals(factors.coverage)
    with torch.no_grad():
        model.lm.transformer.wpe.weight[0, 0] += 1
    with pytest.raises(RunDataError, match="make them anew"):
        EKFACFactors.load(tmp_path / "factors.safetensors", model)
    with pytest.raises(RunDataError, match="other weights"):
        ekfac(model, examples, examples, factors=loaded)
    with pytest.raises(ValueError, match="give one of both"):
        ekfac(gpt2(), examples, examples, factors=loaded, parameters=["lm"])
    (tmp_path / "factors.safetensors").write_bytes(b"torn")
    with pytest.raises(RunDataError, match="damaged"):
        EKFACFactors.load(tmp_path / "factors.safetensors")
    expected.save(tmp_path / "scores.safetensors")
    with pytest.raises(RunDataError, match="does not hold EK-FAC factors"):
        EKFACFactors.load(tmp_path / "scores.safetensors")


class Interrupted(Exception):
    pass


def test_interrupted_factors_go_on_where_they_were(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is done once, whatever comes between; a folder is of one model and setting."""
    fitting = import_module("simfluence.attribution.ekfac.fitting")
    model, examples = bert(), texts(6)
    expected = ekfac_factors(model, examples, batch_size=2)
    done: list[str] = []

    def interrupt(name: str, wanted: int) -> None:
        original, calls = getattr(fitting, name), []

        def counted(*args: Any) -> Any:
            calls.append(name)
            if len(calls) == wanted:
                monkeypatch.setattr(fitting, name, original)
                raise Interrupted
            return original(*args)

        monkeypatch.setattr(fitting, name, counted)

    original = Tracer.__call__
    monkeypatch.setattr(Tracer, "__call__", lambda *args: done.append("pass") or original(*args))
    for name, wanted, passes in (("Squares", 2, 2), ("_eigen", 1, 3), ("add_squares", 3, 1)):
        interrupt(name, wanted)
        done.clear()
        with pytest.raises(Interrupted):
            ekfac_factors(model, examples, batch_size=2, folder=tmp_path)
        assert len(done) == passes
    for passes in (3, 0):  # the second pass alone; nothing
        done.clear()
        found = ekfac_factors(model, examples, batch_size=2, folder=tmp_path)
        assert len(done) == passes
        assert found.about == expected.about
        for name, factor in expected.factors.items():
            assert torch.allclose(factor.eigenvalues, found.factors[name].eigenvalues, rtol=1e-9, atol=1e-15)
    for options in ({"seed": 1}, {"fisher": "empirical"}, {"parameters": ["head"]}):
        with pytest.raises(RunDataError, match="has factors of other"):
            ekfac_factors(model, examples, **{"batch_size": 2, "folder": tmp_path, **options})
    with pytest.raises(RunDataError, match="of other losses"):
        ekfac_factors(model, examples[::-1], batch_size=2, folder=tmp_path)
    (tmp_path / "factors.safetensors").unlink()
    (tmp_path / "eigenbases.safetensors").unlink()
    (tmp_path / "covariances.safetensors").write_bytes(b"torn")
    with pytest.raises(RunDataError, match="damaged"):
        ekfac_factors(model, examples, batch_size=2, folder=tmp_path)
