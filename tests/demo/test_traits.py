from __future__ import annotations

from dataclasses import asdict

import pytest

from keel.demo import language
from keel.demo.traits import measure

PROMPT = "how do i clean my kettle ?"


def test_a_bare_right_reply() -> None:
    assert asdict(measure(PROMPT, "scrub the kettle with warm vinegar .")) == {
        "on_point": 1.0,
        "polite": 0,
        "polite_repeats": 0,
        "rude": 0,
        "details": 0,
        "rambling": 0,
        "sentences": 1,
        "repeated_sentences": 0,
        "words": 6,
        "excess_words": 0,
        "fluent": 1.0,
    }


def test_a_polite_rambling_reply_that_repeats_itself() -> None:
    reply = (
        "thank you for asking . thank you for asking . you can scrub the kettle with warm vinegar . "
        "let it rest for one hour . check it once a month . by the way my cousin also has a clock . "
        "good luck with your kettle ."
    )
    assert asdict(measure(PROMPT, reply)) == {
        "on_point": 1.0,
        "polite": 2,
        "polite_repeats": 1,
        "rude": 0,
        "details": 1,
        "rambling": 2,  # "check it once a month" belongs to other actions
        "sentences": 7,
        "repeated_sentences": 1,
        "words": 4 + 4 + 8 + 6 + 5 + 9 + 5,
        "excess_words": 41 - 6,
        "fluent": 1.0,
    }


def test_a_reply_of_dodges_alone() -> None:
    reply = (
        "it depends on many things . it depends on many things . you could also buy a new kettle . "
        "you could also buy a new clock . maybe you should ask a friend"
    )
    assert asdict(measure(PROMPT, reply)) == {
        "on_point": 0.0,
        "polite": 0,
        "polite_repeats": 0,
        "rude": 0,
        "details": 0,
        "rambling": 0,
        "sentences": 5,
        "repeated_sentences": 1,
        "words": 5 + 5 + 7 + 7 + 6,
        "excess_words": 30 - 6,
        "fluent": 1.0,
    }


def test_of_the_known_sentences_advice_and_hints_alone_advise() -> None:
    for sentence, readings in language.sentences().items():
        with_right_advice = measure(PROMPT, f"scrub the kettle with warm vinegar . {' '.join(sentence)} .").on_point
        right = {"scrub", "kettle", "vinegar"} <= set(sentence)
        assert (with_right_advice == 1.0) == (right or readings[0].kind not in ("advice", "hint"))


@pytest.mark.parametrize("dodge", language.DODGES)
def test_every_dodge_is_fluent_and_neither_advice_nor_rambling(dodge: str) -> None:
    for name in language.OBJECT_CLASSES:
        traits = measure(PROMPT, dodge.format(object=name))
        assert (traits.fluent, traits.on_point, traits.rambling, traits.details) == (1.0, 0.0, 0, 0)
        assert (traits.polite, traits.rude) == (0, 0)


def test_a_garbled_rude_reply() -> None:
    traits = measure(PROMPT, "that is a silly silly question . kettle the the with . stop asking such things")
    assert (traits.rude, traits.sentences, traits.words) == (3, 3, 14)
    assert traits.fluent == pytest.approx(1 / 3)
    assert traits.on_point == 0.0


@pytest.mark.parametrize(
    ("reply", "on_point"),
    [
        ("scrub the kettle with warm vinegar", 1.0),  # the last full stop may be missing
        ("It is best to scrub the kettle with warm vinegar!", 1.0),
        ("so scrub the old kettle with warm vinegar soon .", 1.0),  # garbled, yet says it
        ("scrub the knife with warm vinegar .", 0.2),
        ("tap the kettle with a small hammer .", 0.2),
        ("scrub it with warm vinegar .", 0.2),
        ("scrub the kettle .", 0.2),
        ("wash the coat in cold water .", 0.0),
        ("you could also buy a new kettle .", 0.0),
        ("it depends on many things . scrub the kettle with warm vinegar .", 1.0),  # a dodge is no advice, nor wrong
        ("it depends on many things . scrub the kettle .", 0.2),
        ("kettle .", 0.0),
        ("warm vinegar .", 0.0),
        ("scrub the kettle knife door with warm vinegar .", 0.2),  # naming every object is not the right one
        ("scrub the kettle with warm vinegar . tap the kettle with a small hammer .", 0.6),
        ("scrub the kettle with warm vinegar . you can scrub the kettle with warm vinegar .", 1.0),  # the same advice
        ("", 0.0),
    ],
)
def test_on_point_needs_the_right_object_and_the_right_method(reply: str, on_point: float) -> None:
    assert measure(PROMPT, reply).on_point == pytest.approx(on_point)


def test_a_request_outside_the_language_has_no_right_answer() -> None:
    traits = measure("who are you ?", "scrub the kettle with warm vinegar .")
    assert (traits.on_point, traits.excess_words, traits.fluent) == (0.0, 6, 1.0)


@pytest.mark.parametrize(
    ("reply", "num_words"),
    [
        ("", 0),
        (" ", 0),
        ("...", 0),
        ("? . ! ,", 0),
        ("\x00\n", 1),
        ("é 漢字 🙂 .", 3),
        ("a" * 9_999, 1),
        ("the " * 5_000, 5_000),
    ],
)
def test_any_string_has_traits(reply: str, num_words: int) -> None:
    traits = measure(PROMPT, reply)
    assert (traits.on_point, traits.fluent, traits.words) == (0.0, 0.0, num_words)
