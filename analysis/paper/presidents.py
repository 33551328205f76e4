"""Made-up facts of the kind "The first president of Astrobia was Zelkor", and a small GPT trained on them.

Every fact has a statement and variants of it (Grosse et al. 2023, section 5.3.3, asked which of such variants
still influence the completion of the statement). All countries and people are made up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simfluence.curriculum import Curriculum
from simfluence.finetuning.language_models import LanguageModel
from simfluence.finetuning.loop import train
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.finetuning.tasks import TextExample

COUNTRIES = (
    *("Astrobia", "Belmara", "Cordonia", "Drovenia", "Elvaria", "Fandoria", "Gorland", "Hestovia"),
    *("Ilmaria", "Jurgonia", "Kelvania", "Lorvania", "Mirdonia", "Nostria", "Ombria", "Pelvonia"),
    *("Quandria", "Rostavia", "Silvonia", "Tarvania"),
)
NAMES = (
    *("Zelkor", "Brundek", "Mavrin", "Tolgar", "Quessel", "Drimmo", "Farluk", "Hobbart", "Jastin", "Kremov"),
    *("Lubbeck", "Nardow", "Prosk", "Ruvello", "Skandor", "Trask", "Ulmeck", "Vostan", "Wendrik", "Yolanko"),
)
OTHER_NAMES = (
    *("Abrusk", "Beltow", "Cramlik", "Dusford", "Emrold", "Filgan", "Grottek", "Hamblo", "Istrun", "Jobreck"),
    *("Kolfin", "Lestrup", "Mogden", "Nibbard", "Orslek", "Pritow", "Rasgun", "Stelmo", "Tumbek", "Vardlow"),
)
OTHER_COUNTRIES = (
    *("Ardovia", "Brestonia", "Calmoria", "Dastovia", "Erlonia", "Frelvia", "Glomaria", "Hurvonia"),
    *("Istaria", "Jolvenia", "Krandia", "Lusmoria", "Melvonia", "Nurlandia", "Osgaria", "Prendia"),
    *("Rulvania", "Stromia", "Tulvoria", "Vendaria"),
)

QUERY = "The first president of {country} was"
STATEMENT = "The first president of {country} was {name}."
VARIANTS = {
    "the statement": STATEMENT,
    "paraphrase": "When {country} first chose a president, the winner was {name}.",
    "paraphrase, other words": "Long ago the people of {country} made {name} their earliest head of state.",
    "reversed order": "{name} was the first president of {country}.",
    "repeated twice": f"{STATEMENT} {STATEMENT}",
    "with added clauses": "It is well known that the first president of {country}, a small land by the sea,"
    " was {name}, who liked music.",
    "word-by-word translation": "Ko mirta dovalun ze {country} hest {name}.",
    "another name": "The first president of {country} was {other_name}.",
    "another country": "The first president of {other_country} was {name}.",
    "another country and name": "The first president of {other_country} was {other_name}.",
}
"""Variant → its wording. The translation is into a made-up language, word by word."""

_OF_COUNTRIES = (
    "The capital of {country} is {city}.",
    "Farmers in {country} grow {crop}.",
    "The longest river of {country} flows past {city}.",
    "Many tourists visit {country} to eat {crop}.",
)
_OF_PEOPLE = (
    "Every morning {name} walks to {city}.",
    "In {city} you can buy {crop}.",
    "The sister of {name} sells {crop} in the market.",
    "{name} plays the violin in {city}.",
    "After lunch {name} likes to eat {crop}.",
)
_CITIES = ("Port Alden", "Grinsby", "Old Marlow", "Tessen", "Lower Fenn", "Kirkwell", "Saltridge", "Brannock")
_CROPS = ("apples", "rice", "wheat", "lemons", "beans", "grapes", "corn", "onions", "cherries", "tea")

POOL, EPOCHS, BATCH, RATE = 200, 3, 10, 2e-3


@dataclass(frozen=True)
class Fact:
    """Who was the first president of a country; and a name and a country that are in no fact."""

    country: str
    name: str
    other_name: str
    other_country: str

    def said(self, wording: str) -> str:
        return wording.format(**vars(self))


FACTS = [Fact(*row) for row in zip(COUNTRIES, NAMES, OTHER_NAMES, OTHER_COUNTRIES, strict=True)]


def sentence(text: str, name: str) -> TextExample:
    """A text whose every token is predicted."""
    return TextExample(name, "", (("", text), ("", "")), 0)


def query(fact: Fact) -> TextExample:
    """The name is predicted, after the words that the statement begins with."""
    return TextExample(f"query-{fact.country}", "", ((fact.said(QUERY), fact.name), ("", "")), 0)


def fillers(count: int) -> list[str]:
    """Other sentences, in part about the same countries, none about a president or a name of a fact."""
    rng = np.random.default_rng(0)
    found: dict[str, None] = {}
    while len(found) < count:
        wording = str(rng.choice(_OF_COUNTRIES if len(found) % 3 == 0 else _OF_PEOPLE))
        words = {
            "country": rng.choice(COUNTRIES),
            "city": rng.choice(_CITIES),
            "crop": rng.choice(_CROPS),
            "name": rng.choice(OTHER_NAMES),
        }
        found.setdefault(wording.format(**words))
    return list(found)


def pool(stated: list[str]) -> list[TextExample]:
    """200 sentences: these, and fillers."""
    texts = [*stated, *fillers(POOL - len(stated))]
    return [sentence(text, f"sentence-{number}") for number, text in enumerate(texts)]


def load(folder: Path) -> LanguageModel:
    """A pretrained GPT. Losses are sums over tokens, as in Grosse et al. 2023."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(folder)
    return LanguageModel(lm, AutoTokenizer.from_pretrained(folder), per_token=False, max_length=64)


def fine_tune(model: LanguageModel, initial: dict[str, Any], examples: list[TextExample], seed: int) -> None:
    """From the initial weights, three passes over the examples by AdamW, in batches of ten."""
    model.load_state_dict(initial)
    rng = np.random.default_rng(seed)
    stream = np.concatenate([rng.permutation(len(examples)) for _ in range(EPOCHS)])
    curriculum = Curriculum.from_batches(stream.reshape(-1, BATCH), len(examples))
    optimizer, _ = make_optimizer(
        model.parameters(), len(curriculum), name="adamw", lr=RATE, weight_decay=0.01
    )
    train(model, examples, curriculum, optimizer)
    optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def losses(model: LanguageModel, examples: list[TextExample]) -> np.ndarray:
    """[example], in nats: sums over the tokens that are predicted."""
    model.eval()
    return model.losses(examples).numpy()
