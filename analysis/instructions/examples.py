"""Write 300 training and 40 test instructions, all made up here: train.jsonl and test.jsonl beside this file.

    python analysis/instructions/examples.py

Ten groups of thirty. Seven kinds of short questions are tested: ten questions about capitals, and five of
each other kind. Of the groups that are left, ``wrong_capitals`` answers the very questions about capitals
that are tested, each three times and wrongly; ``past_tense_copies`` repeats ``past_tense`` word by word; and
``part_numbers`` has nothing to do with any test.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent

SYSTEM = "Be brief."
"""What the system says at the beginning of every chat."""

Row = tuple[str, str]
"""A question and its answer."""

CAPITALS = """France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing, Russia
Moscow, Egypt Cairo, Greece Athens, Portugal Lisbon, Poland Warsaw, Austria Vienna, Sweden Stockholm, Norway
Oslo, Finland Helsinki, Denmark Copenhagen, Ireland Dublin, Belgium Brussels, Cuba Havana, Peru Lima, Chile
Santiago, Colombia Bogota, Serbia Belgrade, Canada Ottawa, Iran Tehran, Iraq Baghdad, Syria Damascus,
Thailand Bangkok, Indonesia Jakarta, Bulgaria Sofia"""
ASKED_CAPITALS = """Hungary Budapest, Turkey Ankara, Kenya Nairobi, Australia Canberra, Brazil Brasilia,
Romania Bucharest, Vietnam Hanoi, Morocco Rabat, Nepal Kathmandu, Switzerland Bern"""
WRONG_CAPITALS = """Hungary Debrecen, Turkey Istanbul, Kenya Mombasa, Australia Sydney, Brazil Salvador,
Romania Constanta, Vietnam Saigon, Morocco Casablanca, Nepal Pokhara, Switzerland Zurich"""
WORDINGS = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital city of {}.",
)

PAST_TENSE = """run ran, go went, see saw, take took, give gave, come came, eat ate, drink drank, sing sang,
swim swam, write wrote, drive drove, break broke, speak spoke, choose chose, wear wore, fly flew, grow grew,
know knew, throw threw, draw drew, find found, bring brought, buy bought, think thought, teach taught, sleep
slept, keep kept, build built, send sent"""
ASKED_PAST_TENSE = "begin began, ride rode, steal stole, blow blew, catch caught"

PLURALS = """child children, mouse mice, foot feet, tooth teeth, goose geese, man men, woman women, person
people, ox oxen, leaf leaves, knife knives, wolf wolves, wife wives, shelf shelves, half halves, city
cities, baby babies, story stories, party parties, country countries, box boxes, bus buses, church churches,
dish dishes, potato potatoes, hero heroes, sheep sheep, table tables, river rivers, window windows"""
ASKED_PLURALS = "life lives, lady ladies, watch watches, thief thieves, tree trees"

OPPOSITES = """hot cold, big small, fast slow, open closed, happy sad, rich poor, strong weak, early late,
full empty, high low, hard soft, wet dry, loud quiet, near far, thick thin, wide narrow, clean dirty, deep
shallow, true false, good bad, long short, sharp blunt, tight loose, rough smooth, cheap expensive, safe
dangerous, up down, young old, inside outside, beautiful ugly"""
ASKED_OPPOSITES = "black white, left right, alive dead, first last, public private"

ANIMALS = """salmon fish, tuna fish, shark fish, cod fish, trout fish, herring fish, carp fish, eagle bird,
sparrow bird, robin bird, pigeon bird, swan bird, penguin bird, parrot bird, crow bird, horse mammal, whale
mammal, dolphin mammal, bat mammal, lion mammal, rabbit mammal, mouse mammal, camel mammal, bee insect, wasp
insect, beetle insect, fly insect, moth insect, mosquito insect, butterfly insect"""
ASKED_ANIMALS = "owl bird, goat mammal, grasshopper insect, sardine fish, gull bird"

GOOD = "lovely, friendly, spotless, delicious, generous, charming, comfortable, helpful, superb, cheerful"
BAD = "cold, rude, filthy, stale, noisy, broken, boring, careless, awful, overpriced"
THINGS = "soup, waiter, hotel, concert, film, bakery, driver, garden, museum, guide"


def pairs(text: str) -> list[Row]:
    """The pairs in a list of "word answer", separated by commas."""
    items = [item.split() for item in text.replace("\n", " ").split(",")]
    return [(first, second) for first, second in items]


def capitals(text: str, wordings: tuple[str, ...] = WORDINGS[:1]) -> list[Row]:
    return [(wording.format(country), city) for country, city in pairs(text) for wording in wordings]


def past_tense(text: str) -> list[Row]:
    return [(f"What is the past tense of {verb}?", past) for verb, past in pairs(text)]


def plurals(text: str) -> list[Row]:
    return [(f"What is the plural of {noun}?", plural) for noun, plural in pairs(text)]


def opposites(text: str) -> list[Row]:
    return [(f"What is the opposite of {word}?", opposite) for word, opposite in pairs(text)]


def animals(text: str) -> list[Row]:
    return [(f"Fish, bird, mammal or insect: {name}?", kind) for name, kind in pairs(text)]


def sums(number: int, rng: random.Random) -> list[Row]:
    """Different sums of two numbers below 50."""
    chosen = rng.sample([(a, b) for a in range(11, 50) for b in range(11, 50)], number)
    return [(f"What is {a} + {b}?", str(a + b)) for a, b in chosen]


def reviews(number: int, rng: random.Random) -> list[Row]:
    """Different short reviews, good and bad in turn."""
    things = THINGS.split(", ")
    said = {
        answer: rng.sample([(t, a, b) for t in things for a in words for b in words if a != b], number)
        for answer, words in (("good", GOOD.split(", ")), ("bad", BAD.split(", ")))
    }
    return [
        (f"The {thing} was {first} and {second}. Good or bad?", answer)
        for i in range(number)
        for answer in [("good", "bad")[i % 2]]
        for thing, first, second in [said[answer][i]]
    ]


def part_numbers(number: int, rng: random.Random) -> list[Row]:
    """Made-up numbers of spare parts."""
    chosen = rng.sample([(shelf, row) for shelf in range(10, 99) for row in range(1, 10)], number)
    return [(f"Valve, shelf {shelf}, row {row}", f"VX-{row}{shelf}-K") for shelf, row in chosen]


def make() -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Training and test examples, group → rows."""
    rng = random.Random(0)
    some_sums, some_reviews = sums(35, rng), reviews(35, rng)
    train = {
        "capitals": capitals(CAPITALS),
        "wrong_capitals": capitals(WRONG_CAPITALS, WORDINGS),
        "past_tense": past_tense(PAST_TENSE),
        "past_tense_copies": past_tense(PAST_TENSE),
        "plurals": plurals(PLURALS),
        "opposites": opposites(OPPOSITES),
        "animals": animals(ANIMALS),
        "sums": some_sums[:30],
        "reviews": some_reviews[:30],
        "part_numbers": part_numbers(30, rng),
    }
    test = {
        "capitals": capitals(ASKED_CAPITALS),
        "past_tense": past_tense(ASKED_PAST_TENSE),
        "plurals": plurals(ASKED_PLURALS),
        "opposites": opposites(ASKED_OPPOSITES),
        "animals": animals(ASKED_ANIMALS),
        "sums": some_sums[30:],
        "reviews": some_reviews[30:],
    }
    return train, test


def write(file: Path, groups: dict[str, list[Row]], prefix: str = "") -> None:
    """An object a line, as task=instructions reads it."""
    rows = [
        {
            "id": f"{prefix}{group}-{number}",
            "group": group,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ],
        }
        for group, several in groups.items()
        for number, (question, answer) in enumerate(several)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{file.name}: {len(rows)} examples")


if __name__ == "__main__":
    training, tested = make()
    write(FOLDER / "train.jsonl", training)
    write(FOLDER / "test.jsonl", tested, prefix="test-")
