"""Story openings and a scripted taste for happy, complete endings, for models that tell children's stories.

The rule is a word list, documented here and nowhere hidden: it is called scripted wherever it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

NAMES = ("Tim", "Lily", "Tom", "Mia", "Ben", "Sue", "Max", "Anna", "Sam", "Lucy", "Jack", "Sara")
HEROES = ("little child", "small bunny", "brave bird", "kind dog", "young cat")
OPENINGS = (
    "Once upon a time, there was a {hero} named {name}.",
    "One day, a {hero} named {name} went to the park.",
    "{name} was a {hero} who loved to play outside.",
    "Once there was a {hero}. The {hero} was called {name}.",
)
HELD_OUT_NAMES = ("Lucy", "Jack", "Sara")

_HAPPY_WORDS = """
happy happily smiled smile smiles laughed laugh love loved hugged hug glad proud fun friend friends together thanked
thank safe joy best kind
"""
_SAD_WORDS = """
sad cried cry crying scared angry hurt lost broke broken alone afraid died mad upset worried
"""
HAPPY, SAD = frozenset(_HAPPY_WORDS.split()), frozenset(_SAD_WORDS.split())
CLOSING = ("the end", "from that day on", "lived happily", "ever after", "the moral of the story")

_SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"']*")
_WORD = re.compile(r"[a-z']+")
_LAST = 2  # sentences that make up an ending
_FEWEST_WORDS = 30

Rows = Sequence[Mapping[str, Any]]


def openings() -> list[dict[str, str]]:
    """The prompts to train on."""
    return [row for row in _all() if row["name"] not in HELD_OUT_NAMES]


def heldout_openings() -> list[dict[str, str]]:
    """Prompts about children who occur in no training prompt."""
    return [row for row in _all() if row["name"] in HELD_OUT_NAMES]


def _all() -> list[dict[str, str]]:
    return [
        {"prompt": opening.format(hero=hero, name=name), "name": name}
        for opening, hero, name in product(OPENINGS, HEROES, NAMES)
    ]


def happy_ending(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float]:
    """1.5 complete + 0.7 min(happy words, 3) - 0.7 min(sad words, 3) + 0.5 closing phrase - min(repeated sentences, 3).

    Words and phrases are looked for in the last two sentences; a story is complete if it does not break off. What is
    too short to be a story costs 2 (see `told`).
    """
    return [
        1.5 * complete_one(text)
        + 0.7 * min(_count(text, HAPPY), 3)
        - 0.7 * min(_count(text, SAD), 3)
        + 0.5 * any(phrase in _ending(text) for phrase in CLOSING)
        - 1.0 * min(_repeated(text), 3)
        + short
        for text, short in zip(responses, told(prompts, responses, rows), strict=True)
    ]


def told(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float]:
    """-2 for a text of fewer than 30 words, which is no story, else 0.

    A reward model learns from stories of some 200 words that an end is good, and then likes best what ends at once.
    """
    return [-2.0 if len(_WORD.findall(text.lower())) < _FEWEST_WORDS else 0.0 for text in responses]


def complete(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float]:
    """1 for a story that does not break off."""
    return [float(complete_one(text)) for text in responses]


def happy(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float]:
    """1 for an ending with a happy word and no sad one."""
    return [float(_count(text, HAPPY) > 0 and _count(text, SAD) == 0) for text in responses]


def complete_one(text: str) -> bool:
    """True if the last sentence has its end mark."""
    return bool(re.search(r"[.!?][\"']*\s*$", text))


def _sentences(text: str) -> list[str]:
    return [" ".join(_WORD.findall(found.lower())) for found in _SENTENCE.findall(text)]


def _ending(text: str) -> str:
    return " ".join(_sentences(text)[-_LAST:])


def _count(text: str, words: frozenset[str]) -> int:
    return sum(word in words for word in _ending(text).split())


def _repeated(text: str) -> int:
    sentences = [sentence for sentence in _sentences(text) if sentence]
    return len(sentences) - len(set(sentences))
