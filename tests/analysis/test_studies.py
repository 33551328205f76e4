"""What the scripts in analysis/paper/ compute themselves, against cases whose answers are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

PAPER = Path(__file__).resolve().parents[2] / "analysis" / "paper"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(PAPER), *sys.path])


@pytest.mark.parametrize("law", ["power law", "exponential"])
def test_the_law_that_values_follow_fits_better(law):
    from sparsity import against_exponential

    chances = np.random.default_rng(0).random(2000)
    tail = 3 * chances ** (-1 / 1.5) if law == "power law" else 3 - 2 * np.log(chances)
    better = against_exponential(tail, 3.0)
    assert better > 3 if law == "power law" else better < -3


def test_too_few_values_are_not_compared():
    from sparsity import against_exponential

    assert np.isnan(against_exponential(np.arange(1.0, 6.0), 1.0))


def test_tokens_of_a_statement_are_told_apart():
    from layers_and_tokens import CLASSES, classes_of
    from presidents import Fact

    fact = Fact("Astrobia", "Zelkor", "", "")
    of_token = {
        "<|endoftext|>": "other", "ĠThe": "other", "Ġfirst": "other", "Ġpresident": "other", "Ġof": "other",
        "ĠA": "the country", "st": "the country", "ro": "the country", "bia": "the country",
        "Ġwas": "predicts the name", "ĠZ": "predicts the name", "el": "predicts the name",
        "kor": "the name itself", ".": "other",
    }  # fmt: skip
    assert [CLASSES[number] for number in classes_of(list(of_token), fact)] == list(of_token.values())


def test_facts_and_fillers_share_no_name_of_a_fact():
    from presidents import COUNTRIES, FACTS, NAMES, OTHER_COUNTRIES, OTHER_NAMES, POOL, STATEMENT, pool

    assert len({*COUNTRIES, *NAMES, *OTHER_COUNTRIES, *OTHER_NAMES}) == 80
    examples = pool([fact.said(STATEMENT) for fact in FACTS])
    texts = [example.inputs[0][1] for example in examples]
    assert len(set(texts)) == len(texts) == POOL
    assert not [text for text in texts[len(FACTS) :] for name in NAMES if name in text]


def test_halves_are_halves_and_choices_follow_the_half_that_chose():
    from selection import METHODS, Cell, choice, halves

    half = halves(40)
    assert half.sum() == 20
    scores = {method: np.zeros((200, 40)) for method in METHODS}
    scores["ekfac"][7:57, half == 1] = 1.0
    scores["ekfac"][100:150, half == 0] = 1.0
    assert sorted(choice(Cell("ekfac", 50, 1, 0), scores)) == list(range(7, 57))
    assert sorted(choice(Cell("ekfac", 50, 0, 0), scores)) == list(range(100, 150))


def test_gains_tell_the_half_that_chose_from_the_other():
    import pandas as pd
    from selection import gains, halves

    half = halves(4)
    rows = [{"method": "random", "size": 50, "half": -1, "number": 0, **_losses(np.full(4, 2.0))}]
    for one in (0, 1):
        losses = np.where(half == one, 0.5, 1.5)  # trained for this half, which gains most
        rows.append({"method": "ekfac", "size": 50, "half": one, "number": 0, **_losses(losses)})
    frame = pd.DataFrame(rows)
    np.testing.assert_allclose(gains(frame, "ekfac", 50, used=False).loss, 0.5)
    np.testing.assert_allclose(gains(frame, "ekfac", 50, used=True).loss, 1.5)


def _losses(values):
    return {f"{name} {z}": values[z] for name in ("loss", "right", "predicted") for z in range(len(values))}
