"""The scripted taste for happy, complete endings, word by word on paper."""

from __future__ import annotations

import pytest

from keel.demo.stories import (
    CLOSING,
    HAPPY,
    HELD_OUT_NAMES,
    SAD,
    complete,
    happy,
    happy_ending,
    heldout_openings,
    openings,
    told,
)


def score(text: str) -> float:
    (value,) = happy_ending([""], [text], [{}])
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0.0),
        ("He went home.", 1.5),  # complete, no more
        ("He went home", 0.0),  # breaks off
        ("She was happy and they laughed. The end.", 1.5 + 0.7 * 2 + 0.5),
        ("She was sad. He cried.", 1.5 - 0.7 * 2),
        ("She was sad. But then she was happy.", 1.5 - 0.7 + 0.7),
        ("He was sad. He walked. He smiled at her.", 1.5 + 0.7),  # sadness before the ending does not count
        ("happy happy joy fun love.", 1.5 + 0.7 * 3),  # three are enough
        ("sad sad sad angry hurt.", 1.5 - 0.7 * 3),
        ("He ran. He ran. He ran.", 1.5 - 2.0),
        ("Go. Go. Go. Go. Go. Go.", 1.5 - 3.0),  # three repetitions are enough
        ("They lived happily ever after.", 1.5 + 0.7 + 0.5),  # two closing phrases count once
        ("From that day on, they played. It rained. It stopped.", 1.5),  # the phrase stands before the ending
        ("Tom HUGGED his Friend!", 1.5 + 0.7 * 2),
        ('"I love you," he said.', 1.5 + 0.7),
        ('She said, "Thank you!"', 1.5 + 0.7),
        ("He was unhappy.", 1.5),  # a word, not a part of one
        ("They were happy. And then", 0.7),  # what breaks off is no sentence of the ending
        ("No sentence here", 0.0),
        ("He ran. he RAN!", 1.5 - 1.0),  # the same words in other letters
        ("Wait... What?!", 1.5),
    ],
)
def test_the_taste_by_hand(text: str, value: float) -> None:
    assert score(text) == pytest.approx(value - 2.0)  # all of them are too short to be a story


def test_thirty_words_are_a_story() -> None:
    assert told([""] * 3, ["walk " * 30, "walk " * 29, ""], [{}] * 3) == [0.0, -2.0, -2.0]
    assert score("walk " * 29 + "home.") == pytest.approx(1.5)
    assert score("walk " * 28 + "home.") == pytest.approx(-0.5)


def test_completeness() -> None:
    texts = ["The end.", 'He said, "Yes!"  ', "Why?\n", "He went", "", "Mr. Fox ran on", "It ended.\"'"]
    assert complete([""] * 7, texts, [{}] * 7) == [1, 1, 1, 0, 0, 0, 1]


def test_a_happy_ending_has_no_sad_word() -> None:
    texts = ["They smiled.", "They smiled and cried.", "They sat.", "He cried. They sat. They smiled.", "They smiled"]
    assert happy([""] * 5, texts, [{}] * 5) == [1, 0, 0, 1, 0]


def test_one_value_a_response_whatever_the_prompt() -> None:
    assert happy_ending(["a", "b"], ["Fun.", "Sad."], [{}, {}]) == [pytest.approx(0.2), pytest.approx(-1.2)]


def test_the_word_lists_are_lower_case_words_and_disjoint() -> None:
    assert not HAPPY & SAD
    assert all(word.isalpha() and word.islower() for word in HAPPY | SAD)
    assert all(phrase == phrase.lower() for phrase in CLOSING)


def test_openings_share_no_name_with_the_held_out_ones() -> None:
    train, held_out = openings(), heldout_openings()
    assert (len(train), len(held_out)) == (4 * 5 * 9, 4 * 5 * 3)
    assert len({row["prompt"] for row in train + held_out}) == 240
    assert {row["name"] for row in held_out} == set(HELD_OUT_NAMES)
    for row in train + held_out:
        assert row["name"] in row["prompt"]
        assert row["prompt"].endswith(".")
        assert not set(row["prompt"].lower().replace(".", " ").split()) & SAD
    assert not any(name in row["prompt"] for row in train for name in HELD_OUT_NAMES)
    assert train[0]["prompt"] == "Once upon a time, there was a little child named Tim."
