"""What a person is shown in `keel demo --me`, and what the answers say about the person's taste."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from keel.annotate.base import Pair
from keel.annotate.terminal import Key
from keel.demo.traits import Traits, measure
from keel.schema import Comparison
from keel.seeds import Draws

REPEATS = "repeats"
"""Column of a pair that was shown before with its sides exchanged: the number of that earlier pair."""
Reply = tuple[str, str]
"""A prompt and what a model answered."""
_RESAMPLES = 2000
_REPEAT_EVERY = 10  # pairs to one that is shown again
_GAP = 10  # pairs, at least, between the two times

TRAITS: Mapping[str, Callable[[Traits], float]] = {
    "on the point": lambda traits: traits.on_point,
    "polite phrases": lambda traits: traits.polite,
    "rude phrases": lambda traits: traits.rude,
    "small talk": lambda traits: traits.rambling,
    "useful details": lambda traits: traits.details,
    "words": lambda traits: traits.words,
}
"""What is counted in a reply, by the name that a person reads."""
_SCALE = {"on the point": 1.0, "polite phrases": 2, "rude phrases": 2, "small talk": 2, "useful details": 2}
_WORDS_SCALE = 16  # words that count as much as a whole trait
_OTHERS = 0.5  # what a difference in the other traits costs a pair


@dataclass(frozen=True)
class Favour:
    """In `chosen` of the `pairs` where a trait differed, the reply that has more of it was preferred."""

    trait: str
    chosen: int
    pairs: int


@dataclass(frozen=True)
class Agreement:
    """Of the `pairs` that were answered both times, `same` got the same answer."""

    same: int
    pairs: int


@dataclass(frozen=True)
class Change:
    """Means of one trait over the replies of two models, and the 95 % interval of their difference."""

    trait: str
    before: float
    after: float
    low: float
    high: float


def choose_pairs(candidates: Sequence[tuple[str, Sequence[str]]], draws: Draws) -> list[Pair]:
    """One pair a prompt from its candidate replies, in drawn order of the sides, and a tenth of them once more.

    Pair n is the one in which trait n (in turn) differs most and the others little, so that an answer says something
    about that trait. Prompts whose replies are all alike are left out.
    """
    shown: list[Pair] = []
    traits = list(_SCALE)
    for prompt, replies in candidates:
        distinct = list(dict.fromkeys(reply.strip() for reply in replies if reply.strip()))
        if len(distinct) < 2:
            continue
        number = len(shown)
        one, other = _telling(prompt, distinct, traits[number % len(traits)])
        swap = draws.generator("side", sample=number).random() < 0.5
        shown.append(Pair(prompt, *((other, one) if swap else (one, other)), row={}))
    return _with_repeats(shown, draws)


def _telling(prompt: str, replies: Sequence[str], trait: str) -> tuple[str, str]:
    measured = {reply: measure(prompt, reply) for reply in replies}

    def worth(pair: tuple[str, str]) -> float:
        first, second = (measured[reply] for reply in pair)
        differences = {name: abs(TRAITS[name](first) - TRAITS[name](second)) / scale for name, scale in _SCALE.items()}
        others = sum(differences.values()) - differences[trait] + abs(first.words - second.words) / _WORDS_SCALE
        return differences[trait] - _OTHERS * others

    return max(combinations(replies, 2), key=worth)


def _with_repeats(shown: Sequence[Pair], draws: Draws) -> list[Pair]:
    """Some early pairs come again among the later ones, mirrored; which ones is drawn."""
    first_half = len(shown) // 2
    drawn = draws.permutation("repeat", first_half)[: len(shown) // _REPEAT_EVERY].tolist()
    pairs = list(shown)
    for index, number in enumerate(sorted(drawn)):
        again = shown[number]
        at = max(number + _GAP, first_half) + 1 + index * (_REPEAT_EVERY // 2)
        pairs.insert(min(at, len(pairs)), Pair(again.prompt, again.second, again.first, row={REPEATS: number}))
    return pairs


def to_rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The pairs as JSON objects."""
    return [{"prompt": pair.prompt, "first": pair.first, "second": pair.second, **pair.row} for pair in pairs]


def from_rows(rows: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """What `to_rows` wrote."""
    return [
        Pair(row["prompt"], row["first"], row["second"], row={REPEATS: row[REPEATS]} if REPEATS in row else {})
        for row in rows
    ]


def comparisons(pairs: Sequence[Pair], answers: Sequence[Key]) -> list[list[Comparison]]:
    """What the reward model learns from, one list a judged pair; `answers` may be fewer than `pairs`.

    Equal replies win half a time each: two comparisons of weight 1/2. Skipped pairs and those shown before are left
    out.
    """
    learnt = []
    for pair, answer in zip(pairs, answers, strict=False):
        if REPEATS in pair.row or answer is Key.SKIP:
            continue
        forward = Comparison(pair.prompt, pair.first, pair.second, annotator="you")
        backward = Comparison(pair.prompt, pair.second, pair.first, annotator="you")
        if answer is Key.EQUAL:
            learnt.append([_half(forward), _half(backward)])
        else:
            learnt.append([forward if answer is Key.FIRST else backward])
    return learnt


def _half(comparison: Comparison) -> Comparison:
    return Comparison(comparison.prompt, comparison.chosen, comparison.rejected, annotator="you", weight=0.5)


def self_agreement(pairs: Sequence[Pair], answers: Sequence[Key]) -> Agreement:
    """How often the same pair with its sides exchanged got the same answer; skipped ones do not count."""
    mirrored = {Key.FIRST: Key.SECOND, Key.SECOND: Key.FIRST, Key.EQUAL: Key.EQUAL}
    # A repeat stands behind its original, and repeats are not counted in the originals' numbers.
    originals = [answer for pair, answer in zip(pairs, answers, strict=False) if REPEATS not in pair.row]
    twice = [
        (originals[pair.row[REPEATS]], answer)
        for pair, answer in zip(pairs, answers, strict=False)
        if REPEATS in pair.row
    ]
    both = [(once, again) for once, again in twice if Key.SKIP not in (once, again)]
    return Agreement(sum(mirrored[once] is again for once, again in both), len(both))


def favours(learnt: Sequence[Comparison]) -> list[Favour]:
    """For each trait: in how many comparisons it differed, and how often the reply with more of it was chosen."""
    measured = [(measure(str(row.prompt), row.chosen), measure(str(row.prompt), row.rejected)) for row in learnt]
    found = []
    for name, value in TRAITS.items():
        differences = [value(chosen) - value(rejected) for chosen, rejected in measured]
        found.append(Favour(name, sum(d > 0 for d in differences), sum(d != 0 for d in differences)))
    return found


def changes(before: Sequence[Reply], after: Sequence[Reply], per_prompt: int, draws: Draws) -> list[Change]:
    """How each trait's mean moved between two models' replies to the same prompts, `per_prompt` each, in their order.

    The interval is a percentile bootstrap over prompts, both models' replies of a prompt drawn together.
    """
    measured = [[measure(*reply) for reply in replies] for replies in (before, after)]
    rows = draws.generator("bootstrap").integers(0, len(before) // per_prompt, (_RESAMPLES, len(before) // per_prompt))
    found = []
    for name, value in TRAITS.items():
        old, new = (
            np.array([value(traits) for traits in model], dtype=np.float64).reshape(-1, per_prompt).mean(axis=1)
            for model in measured
        )
        low, high = np.percentile((new - old)[rows].mean(axis=1), [2.5, 97.5])
        found.append(Change(name, float(old.mean()), float(new.mean()), float(low), float(high)))
    return found


def folds(count: int, number: int) -> list[range]:
    """The positions 0 … count − 1 dealt out to at most `number` folds in turn; none is empty."""
    return [range(fold, count, number) for fold in range(min(number, count))]
