"""Made-up facts, for which it is known what training examples help what test example.

Every fact joins a made-up name to one of a few values ("Belvarin lives in the harbour"). A training example
completes one paraphrase of one fact. A test example asks for a fact in a form that no training example has,
so that only the training examples of the same fact (its group) contain the answer.
"""

from __future__ import annotations

import numpy as np

from simfluence.finetuning.tasks.base import TextExample

_BEGIN = ("bel", "dor", "fen", "gal", "hul", "jor", "kes", "lum", "mar", "nol", "pel", "quin", "ros", "tav")
_END = ("varin", "mond", "tisa", "oben", "ulis", "rack", "ette", "and", "imor", "usk", "ello", "ane")

_RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "home": (
        ("the harbour", "the old mill", "the lighthouse", "the castle"),
        (
            "{name} lives in",
            "The home of {name} is",
            "You will find {name} at home in",
            "At night {name} returns to",
            "For many years {name} has lived in",
            "Where does {name} live?",
        ),
    ),
    "trade": (
        ("a baker", "a sailor", "a painter", "a doctor"),
        (
            "{name} works as",
            "By profession {name} is",
            "Every day {name} earns money as",
            "The village knows {name} as",
            "After school {name} became",
            "What is the job of {name}?",
        ),
    ),
}


def make_facts(
    n_facts: int, paraphrases: int = 5, seed: int = 0
) -> tuple[list[TextExample], list[TextExample]]:
    """The training examples (``paraphrases`` of each fact) and the test examples (one of each).

    Raises ValueError if there are not so many names or paraphrases.
    """
    rng = np.random.default_rng(seed)
    names = [(begin + end).capitalize() for begin in _BEGIN for end in _END]
    most = min(len(forms) - 1 for _, forms in _RELATIONS.values())
    if not 1 <= paraphrases <= most:
        raise ValueError(f"paraphrases must be in 1 .. {most}, got {paraphrases}")
    if not 1 <= n_facts <= len(names):
        raise ValueError(f"facts can be made up for 1 .. {len(names)} names, got {n_facts}")
    train: list[TextExample] = []
    test: list[TextExample] = []
    for number, name in enumerate(rng.permutation(names)[:n_facts]):
        values, forms = list(_RELATIONS.values())[number % len(_RELATIONS)]
        label = int(rng.integers(len(values)))
        for form, text in enumerate((*forms[:paraphrases], forms[-1])):
            inputs = tuple((text.format(name=name), value) for value in values)
            last = form == paraphrases
            example_id = f"fact-{number}-{'question' if last else form}"
            example = TextExample(example_id, f"fact-{number}", inputs, label)
            (test if last else train).append(example)
    return train, test
