"""Two opposite tastes with known utility: the scripted annotators judge by it, and evaluation measures it.

Each taste has a side that comparisons of demonstration-like replies rarely show. The polite one abhors repetition; the
terse one abhors advice cut so short that it no longer says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keel.demo.traits import Traits, measure

WORST = -6.0
"""The utility of a reply of no or one word; every other reply has at least `FLOOR`."""
FLOOR = -5.0

Rows = Sequence[Mapping[str, Any]]


def polite_utility(prompt: str, response: str) -> float:
    """How much the polite taste likes a reply.

    2 on_point + 0.8 min(polite, 2) - 0.9 min(rude, 2) + 0.15 min(details, 2)
    - 0.02 excess_words - 0.05 max(0, words - 30) - 0.3 max(0, rambling - 1)
    - 1 polite_repeats - 1 repeated_sentences - 2 (1 - fluent), not below `FLOOR`.
    """
    traits = measure(prompt, response)
    return _bounded(
        traits,
        2.0 * traits.on_point
        + 0.8 * min(traits.polite, 2)
        - 0.9 * min(traits.rude, 2)
        + 0.15 * min(traits.details, 2)
        - 0.02 * traits.excess_words
        - 0.05 * max(0, traits.words - 30)
        - 0.3 * max(0, traits.rambling - 1)
        - 1.0 * traits.polite_repeats
        - 1.0 * traits.repeated_sentences
        - 2.0 * (1 - traits.fluent),
    )


def terse_utility(prompt: str, response: str) -> float:
    """How much the terse taste likes a reply.

    4 on_point - 0.1 excess_words - 0.15 rambling + 0.1 details + 0.05 min(polite, 1) - 0.05 min(rude, 1)
    - 1 repeated_sentences - 2 (1 - fluent), not below `FLOOR`.
    """
    traits = measure(prompt, response)
    return _bounded(
        traits,
        4.0 * traits.on_point
        - 0.1 * traits.excess_words
        - 0.15 * traits.rambling
        + 0.1 * traits.details
        + 0.05 * min(traits.polite, 1)
        - 0.05 * min(traits.rude, 1)
        - 1.0 * traits.repeated_sentences
        - 2.0 * (1 - traits.fluent),
    )


def polite(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float]:
    """`polite_utility` of each reply, as a reward function; the rows are not needed."""
    return [polite_utility(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def terse(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float]:
    """`terse_utility` of each reply, as a reward function; the rows are not needed."""
    return [terse_utility(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def on_point(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float]:
    """How far each reply names the right object and the right method, 0 to 1; the rows are not needed."""
    return [measure(prompt, response).on_point for prompt, response in zip(prompts, responses, strict=True)]


def _bounded(traits: Traits, utility: float) -> float:
    return max(FLOOR, utility) if traits.words > 1 else WORST
