"""What made-up sentences promise: paraphrases without shared words, a language word by word, new wordings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import simfluence

sys.path.append(str(Path(simfluence.__file__).parents[1] / "analysis" / "paper"))
import made_up_text as made

FUNCTION_WORDS = {"a", "as", "at", "by", "for", "has", "in", "is", "next", "of", "the", "to", "with"}


def words(sentence: str) -> set[str]:
    return {word.lower() for word in sentence.removesuffix(".").split()}


@pytest.mark.parametrize("relation", made.VALUES)
def test_a_paraphrase_shares_only_the_name_with_the_statement(relation: str) -> None:
    for word in made.VALUES[relation]:
        fact = made.Fact("Orvik", relation, word)
        shared = words(fact.said(made.STATEMENT[relation])) & words(fact.said(made.PARAPHRASE[relation]))
        assert shared - FUNCTION_WORDS == {"orvik"}


def test_the_language_has_one_word_for_every_english_one() -> None:
    sentences = [
        made.Fact("Orvik", relation, word).said(wording)
        for relation, values in made.VALUES.items()
        for word in values
        for wording in (made.STATEMENT[relation], made.PARAPHRASE[relation], *made.OTHER_WORDINGS[relation])
    ]
    english = set().union(*map(words, sentences)) - {"orvik"}
    foreign = {made.made_up_word(word) for word in english}
    assert len(foreign) == len(english)
    assert not foreign & english
    for sentence in sentences:
        translation = made.translated(sentence, "Orvik")
        assert translation.split().index("Orvik") == sentence.split().index("Orvik")
        assert len(translation.split()) == len(sentence.split())


def test_completions_say_of_a_fact_one_thing_and_ask_for_it_in_a_new_wording() -> None:
    train, test = made.completions(12)
    assert (len(train), len(test)) == (120, 24)
    assert len({row["id"] for row in train + test}) == 144
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    for asked in test:
        same = [row for row in train if row["group"] == asked["group"]]
        assert len(same) == 5
        answer = asked["choices"][asked["label"]]
        assert [row["choices"][row["label"]] for row in same[:2]] == [answer, answer]
        assert same[3]["choices"][same[3]["label"]] == made.made_up_word(answer[:-1]) + "."


def test_documents_are_drawn_by_their_seed() -> None:
    assert made.documents(20, ["Orvik"], 1) == made.documents(20, ["Orvik"], 1)
    assert made.documents(20, ["Orvik"], 1) != made.documents(20, ["Orvik"], 2)
