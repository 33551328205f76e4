"""Made-up people and what is said of them, in English and in a made-up language.

Every person has a trade and a home. Each of these is stated in two ways that share no content word but the
name: by its word ("Orvik works as a baker.") and by a description ("Every day Orvik makes bread."). The
made-up language is English word by word: every word but names stands for one made-up word, always the same.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

TRADES = {
    "a baker": "makes bread",
    "a sailor": "steers ships",
    "a painter": "draws portraits",
    "a doctor": "heals sick patients",
    "a farmer": "grows wheat",
    "a teacher": "educates children",
    "a tailor": "sews coats",
    "a miner": "digs for coal",
    "a singer": "performs songs",
    "a judge": "decides about crimes",
    "a fisher": "catches salmon",
    "a smith": "hammers iron",
}
HOMES = {
    "the harbour": "beside big boats",
    "the lighthouse": "under a great lamp",
    "the castle": "behind royal walls",
    "the forest": "among tall trees",
    "the desert": "amid hot sand",
    "the library": "between old books",
    "the monastery": "near praying monks",
    "the vineyard": "next to ripe grapes",
    "the stable": "with three horses",
    "the island": "surrounded by water",
    "the market": "by fruit stalls",
    "the valley": "below high mountains",
}
VALUES = {"trade": TRADES, "home": HOMES}
STATEMENT = {"trade": "{name} works as {word}.", "home": "{name} lives in {word}."}
"""The wording that queries have."""
PARAPHRASE = {"trade": "Every day {name} {description}.", "home": "At night {name} sleeps {description}."}
"""The same, sharing no content word with :data:`STATEMENT` but the name."""
OTHER_WORDINGS = {
    "trade": ("By profession {name} is {word}.", "The village knows {name} as {word}."),
    "home": ("The house of {name} stands in {word}.", "For many years {name} has lived in {word}."),
}

_BEGIN = (
    "or", "tal", "bren", "mik", "sul", "var", "ged", "hol", "nim", "pad", "rez", "wil", "yas", "kor", "lun",
)  # fmt: skip
_END = (
    "vik", "dara", "sen", "ota", "mir", "gan", "elle", "bert", "uma", "rin", "fas", "tor", "ix", "wen", "esk",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """That a person has this trade, or lives there. word : a key of ``VALUES[relation]``."""

    name: str
    relation: str
    word: str

    def said(self, wording: str) -> str:
        """The fact as a sentence. wording : with {name} and {word} or {description}."""
        return wording.format(name=self.name, word=self.word, description=VALUES[self.relation][self.word])


def people() -> list[str]:
    """The names of all 225 people, in a fixed random order."""
    names = [(begin + end).capitalize() for begin, end in product(_BEGIN, _END)]
    return [str(name) for name in np.random.default_rng(0).permutation(names)]


def translated(sentence: str, name: str) -> str:
    """A sentence about a person in the made-up language, the name kept."""
    words = sentence.removesuffix(".").split()
    return " ".join(word if word == name else made_up_word(word.lower()) for word in words) + "."


def made_up_word(word: str) -> str:
    """The made-up word of two or three syllables that stands for an English one."""
    rng = np.random.default_rng(zlib.crc32(word.encode()))
    syllables = [c + v for c in "bdgjkmnptvxz" for v in ("aa", "ei", "oo", "u", "y")]
    return "".join(rng.choice(syllables, size=2 if len(word) < 5 else 3))


def completions(n_people: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Multiple choices about the trade and the home of people, as rows of a JSONL file, grouped by fact.

    Returns five training rows a fact (two wordings, both also in the made-up language, and the paraphrase),
    and a test row a fact in a wording that no training row has. Every row has four choices.
    """
    rng = np.random.default_rng(0)
    train, test = [], []
    for name, relation in product(people()[:n_people], VALUES):
        words = [str(word) for word in rng.permutation(list(VALUES[relation]))[:4]]
        facts, label = [Fact(name, relation, word) for word in words], int(rng.integers(4))
        wordings = [(w, False) for w in (*OTHER_WORDINGS[relation], PARAPHRASE[relation])]
        wordings += [(w, True) for w in OTHER_WORDINGS[relation]]
        for number, (wording, foreign) in enumerate(wordings):
            train.append(_completion(facts, label, wording, foreign) | {"id": f"{name}-{relation}-{number}"})
        test.append(_completion(facts, label, STATEMENT[relation], False) | {"id": f"{name}-{relation}-test"})
    return train, test


def _completion(facts: list[Fact], label: int, wording: str, foreign: bool) -> dict[str, Any]:
    """The words that all choices begin with, and what follows them in each."""
    said = [fact.said(wording) for fact in facts]
    words = [(translated(s, facts[0].name) if foreign else s).split() for s in said]
    shared = next(i for i, same in enumerate(zip(*words, strict=False)) if len(set(same)) > 1)
    choices = [" ".join(sentence[shared:]) for sentence in words]
    prompt = " ".join(words[0][:shared])
    return {
        "question": prompt,
        "choices": choices,
        "label": label,
        "group": f"{facts[0].name}-{facts[0].relation}",
    }


def documents(count: int, names: list[str], seed: int) -> list[str]:
    """Short texts about people: what is true of a person changes from text to text.

    Each states one or two facts in two or three wordings; three in ten are in the made-up language, and in
    three in ten every sentence is followed by its translation.
    """
    rng = np.random.default_rng(seed)
    return [_document(rng, str(rng.choice(names))) for _ in range(count)]


def _document(rng: np.random.Generator, name: str) -> str:
    sentences = []
    for relation in rng.permutation(list(VALUES))[: rng.integers(1, 3)]:
        fact = Fact(name, str(relation), str(rng.choice(list(VALUES[relation]))))
        wordings = [STATEMENT[relation], PARAPHRASE[relation], *OTHER_WORDINGS[relation]]
        sentences += [fact.said(w) for w in rng.permutation(wordings)[: rng.integers(2, 4)]]
    language = rng.random()
    if language < 0.3:
        return " ".join(translated(sentence, name) for sentence in sentences)
    if language < 0.6:
        return " ".join(f"{sentence} {translated(sentence, name)}" for sentence in sentences)
    return " ".join(sentences)
