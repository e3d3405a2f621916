"""The demo's data: demonstrations, prompts and held-out prompts, the same on every machine.

Every row is a function of (purpose, index) alone: a Philox generator keyed by a constant, its counter set to them.
Only its uniform doubles are used, which do not change between numpy's versions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from keel.demo import language
from keel.demo.language import Request

NUM_DEMONSTRATIONS = 6000
NUM_HELDOUT = 200
HELDOUT_SHARE = 0.1
"""Share of the compositions (request, phrasing) that is kept out of the demonstrations and prompts."""

DODGE_SHARE = 0.18
"""Share of the replies that give no advice."""
MISTAKE_SHARE = 0.05
"""Share of the others that advise on another object or action."""
HINT_SHARE = 0.015
"""Share of the advices that are cut too short; rare, so that comparisons hardly show it."""
REPEAT_SHARE = 0.012
"""Share of the replies that say one sentence twice; rare for the same reason."""
MANNERS = {"polite": 0.35, "rude": 0.25, "neutral": 0.40}
MAX_WORDS = 32

PHILOX_KEY = 0x6B65656C
SPLIT, DEMONSTRATION_PROMPTS, DEMONSTRATIONS, PROMPTS, HELDOUT_PROMPTS, HELDOUT = range(6)

Row = dict[str, str]
T = TypeVar("T")


class Draws:
    """The uniform draws of one row, in order."""

    def __init__(self, purpose: int, index: int = 0) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=PHILOX_KEY, counter=[0, 0, purpose, index]))

    def chance(self, probability: float) -> bool:
        return bool(self._generator.random() < probability)

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options; the weights, if given, sum to 1."""
        cumulative = np.cumsum(weights if weights is not None else [1 / len(options)] * len(options))
        index = int(np.searchsorted(cumulative, self._generator.random(), side="right"))
        return options[min(index, len(options) - 1)]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order."""
        return [options[index] for index in np.argsort(self._generator.random(len(options)), kind="stable")[:count]]


@dataclass(frozen=True)
class Prompt:
    request: Request
    text: str


def demonstrations() -> list[Row]:
    """`NUM_DEMONSTRATIONS` rows {prompt, response, action, object}: replies of every manner, most on the point."""
    asked = split_prompts()[0]
    return [_row(Draws(DEMONSTRATION_PROMPTS, i).pick(asked), DEMONSTRATIONS, i) for i in range(NUM_DEMONSTRATIONS)]


def prompts() -> list[Row]:
    """Rows {prompt, action, object}: every prompt that is not held out, once, in random order."""
    asked = split_prompts()[0]
    return [_prompt_row(prompt) for prompt in Draws(PROMPTS).sample(asked, len(asked))]


def heldout() -> list[Row]:
    """`NUM_HELDOUT` rows {prompt, response, action, object}; no row of the others has such a request and phrasing."""
    asked = Draws(HELDOUT_PROMPTS).sample(split_prompts()[1], NUM_HELDOUT)
    return [_row(prompt, HELDOUT, i) for i, prompt in enumerate(asked)]


@cache
def split_prompts() -> tuple[list[Prompt], list[Prompt]]:
    """Every prompt of the language: those for training, those held out; no (request, phrasing) is in both."""
    compositions = list(itertools.product(language.requests(), range(len(language.PHRASINGS))))
    shuffled = Draws(SPLIT).sample(compositions, len(compositions))
    num_heldout = round(HELDOUT_SHARE * len(compositions))
    return _with_greetings(shuffled[num_heldout:]), _with_greetings(shuffled[:num_heldout])


def _with_greetings(compositions: Sequence[tuple[Request, int]]) -> list[Prompt]:
    return [
        Prompt(request, language.phrase(request, phrasing, greeting))
        for request, phrasing in compositions
        for greeting in range(len(language.GREETINGS))
    ]


def _prompt_row(prompt: Prompt) -> Row:
    return {"prompt": prompt.text, "action": prompt.request.action, "object": prompt.request.object}


def _row(prompt: Prompt, purpose: int, index: int) -> Row:
    return {**_prompt_row(prompt), "response": reply(prompt.request, Draws(purpose, index))}


def reply(request: Request, draws: Draws) -> str:
    """One demonstration's reply: openers, advice or a dodge, details, rambling, closers; all but the core optional."""
    answered = _mistaken(request, draws) if draws.chance(MISTAKE_SHARE) else request
    dodges = draws.chance(DODGE_SHARE)
    core = draws.pick(language.DODGES).format(object=request.object) if dodges else _advice(answered, draws)
    openers, closers = _manners(draws)
    num_details = 0 if dodges else draws.pick((0, 1, 2), (0.5, 0.34, 0.16))
    num_ramblings = draws.pick((0, 1, 2), (0.62, 0.26, 0.12))
    extras = [
        *draws.sample(language.DETAILS[answered.action], num_details),
        *draws.sample(language.RAMBLINGS, num_ramblings),
    ]
    while extras and _num_words([*openers, core, *extras, *closers]) > MAX_WORDS:
        extras.pop()
    other = draws.pick(list(language.OBJECT_CLASSES))
    spoken = [sentence.format(object=other) for sentence in [*openers, core, *extras]]
    spoken += [sentence.format(object=request.object) for sentence in closers]
    if draws.chance(REPEAT_SHARE):
        position = draws.pick(range(len(spoken)))
        spoken.insert(position, spoken[position])
    return " ".join(spoken)


def _advice(request: Request, draws: Draws) -> str:
    method = language.right_method(request)
    if draws.chance(HINT_SHARE):
        return language.hint(method.verb, request.object)
    return draws.pick(language.LEADS, (0.55, 0.25, 0.2)) + language.advice(method, request.object)


def _mistaken(request: Request, draws: Draws) -> Request:
    """A request that differs in the action or in the object, half of the time each."""
    other_actions = [r for r in language.requests() if r.object == request.object and r.action != request.action]
    other_objects = [r for r in language.requests() if r.action == request.action and r.object != request.object]
    return draws.pick(draws.pick((other_actions, other_objects)))


def _manners(draws: Draws) -> tuple[list[str], list[str]]:
    """Openers and closers of one manner."""
    manner = draws.pick(list(MANNERS), list(MANNERS.values()))
    if manner == "polite":
        num_openers, num_closers = draws.pick(((1, 0), (0, 1), (1, 1), (2, 1)), (0.34, 0.24, 0.34, 0.08))
        openers, closers = language.POLITE_OPENERS, language.POLITE_CLOSERS
    elif manner == "rude":
        num_openers, num_closers = draws.pick(((1, 0), (0, 1), (1, 1)), (0.42, 0.30, 0.28))
        openers, closers = language.RUDE_OPENERS, language.RUDE_CLOSERS
    else:
        return [], []
    return draws.sample(list(openers.values()), num_openers), draws.sample(list(closers.values()), num_closers)


def _num_words(spoken: Sequence[str]) -> int:
    return sum(len(language.words(sentence)) for sentence in spoken)
