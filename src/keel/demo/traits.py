"""Measures the traits of a reply; any string gives a result, however garbled."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from keel.demo import language
from keel.demo.language import Method, Request, Sentence

HALF_RIGHT = 0.2


@dataclass(frozen=True)
class Traits:
    """What can be counted in a reply to a request."""

    on_point: float
    """0 to 1: mean over the different advices, 0 without any; each 1 with the right object and method, 0.2 with one."""
    polite: int
    """Different polite phrases, told by their marker words."""
    polite_repeats: int
    """Polite phrases said again."""
    rude: int
    """Rude phrases, every one counted."""
    details: int
    """Different useful details: those that belong to the action asked for."""
    rambling: int
    """Different off-topic sentences: small talk, and details of other actions."""
    sentences: int
    repeated_sentences: int
    """Sentences that stood in the reply before."""
    words: int
    excess_words: int
    """Words beyond the bare right advice (beyond 0 where the request is not of the language)."""
    fluent: float
    """0 to 1: share of the sentences that are sentences of the language; 0 for an empty reply."""


def measure(prompt: str, response: str) -> Traits:
    """The traits of `response` as a reply to `prompt`."""
    request = language.parse_prompt(prompt)
    split = language.split_sentences(response)
    distinct = list(dict.fromkeys(split))
    readings = {sentence: language.sentences().get(sentence, ()) for sentence in distinct}
    markers = Counter(word for sentence in split for word in sentence)
    polite = {marker: markers[marker] for marker in language.POLITE_MARKERS if markers[marker]}
    details = [kinds for kinds in readings.values() if _is(kinds, "detail")]
    useful = [kinds for kinds in details if request and any(kind.action == request.action for kind in kinds)]
    num_words = sum(map(len, split))
    return Traits(
        on_point=_on_point(request, distinct),
        polite=len(polite),
        polite_repeats=sum(polite.values()) - len(polite),
        rude=sum(markers[marker] for marker in language.RUDE_MARKERS),
        details=len(useful),
        rambling=len(details) - len(useful) + sum(_is(kinds, "rambling") for kinds in readings.values()),
        sentences=len(split),
        repeated_sentences=len(split) - len(distinct),
        words=num_words,
        excess_words=max(0, num_words - _needed_words(request)),
        fluent=sum(bool(readings[sentence]) for sentence in split) / max(1, len(split)),
    )


def _is(readings: tuple[Sentence, ...], kind: str) -> bool:
    return any(reading.kind == kind for reading in readings)


def _needed_words(request: Request | None) -> int:
    return len(language.words(language.advice(language.right_method(request), request.object))) if request else 0


def _on_point(request: Request | None, sentences: list[tuple[str, ...]]) -> float:
    """The mean grade of the different advices, so that naming every method does not pay."""
    if request is None:
        return 0.0
    advices = {
        (frozenset(language.OBJECT_CLASSES.keys() & set(sentence)), language.methods_named(sentence))
        for sentence in sentences
        if _advises(sentence)
    }
    return sum(_grade(request, *advice) for advice in advices) / max(1, len(advices))


def _grade(request: Request, objects: frozenset[str], methods: frozenset[Method]) -> float:
    num_right = (objects == {request.object}) + (methods == {language.right_method(request)})
    return (0.0, HALF_RIGHT, 1.0)[num_right]


def _advises(sentence: tuple[str, ...]) -> bool:
    """Whether a sentence, known or garbled, has a whole method or "<its verb> the"."""
    begun = any(word in language.METHOD_VERBS and after == "the" for word, after in pairwise(sentence))
    return begun or bool(language.methods_named(sentence))
