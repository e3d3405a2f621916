from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from keel.rewards import contains_answer, exact_match, last_number, normalise, number_match
from keel.user_functions import checked


def ask(function: Any, response: str, answer: Any) -> float | None:
    (value,) = checked("f", function)(["p"], [response], [{"answer": answer}])
    return value


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("  Paris. ", "paris"),
        ("The\n\tcapital  is PARIS!", "the capital is paris"),
        ("**(Straße)**", "strasse"),
        ("\uff21\uff22 \uff11", "ab 1"),  # full width
        ("it's", "it's"),
        ("3.5", "3.5"),
        (" .?! ", ""),
    ],
)
def test_normalisation(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


@pytest.mark.parametrize(
    ("response", "answer", "exact", "contained"),
    [
        (" paris.", "Paris", 1.0, 1.0),
        ("It is Paris, of course.", "Paris", 0.0, 1.0),
        ("Parisian", "Paris", 0.0, 0.0),
        ("the answer: new  york", "New York", 0.0, 1.0),
        ("London", ["Paris", "London"], 1.0, 1.0),
        ("Rome", ["Paris", "London"], 0.0, 0.0),
        ("It is 42", 42, 0.0, 1.0),
        ("It is 142", 42, 0.0, 0.0),
        ("is it a+b?", "a+b", 0.0, 1.0),  # no pattern
        ("anything", "...", 0.0, 0.0),  # an answer of which nothing is left stands nowhere
        ("Paris", None, None, None),
        ("Paris", [], 0.0, 0.0),
    ],
)
def test_words(response: str, answer: Any, exact: float | None, contained: float | None) -> None:
    assert ask(exact_match, response, answer) == exact
    assert ask(contains_answer, response, answer) == contained


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("first 3, then 42.", "42"),
        ("so 1,234,567.50 in all", "1234567.50"),
        ("$1,200 a month", "1200"),
        ("it fell to -3", "-3"),
        ("it fell to −$3", "-3"),
        ("7-3=4", "4"),
        ("12,34", "34"),
        ("50%", "50"),
        ("3.5 kg", "3.5"),
        ("3.5kg", "3.5"),
        ("p = .25", ".25"),
        ("1,2345", "2345"),
        ("$1,23", "23"),
        ("room B12 and v2.0", None),
        ("none", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_numbers_are_compared_as_numbers() -> None:
    assert ask(number_match, "She pays 1,200.00 dollars.", "48 * 25 = 1200\n#### 1200") == 1.0
    assert ask(number_match, "0.3", 0.1 + 0.2) == 0.0  # 0.30000000000000004 is another number
    assert ask(number_match, "12", [11, 12.0]) == 1.0
    assert ask(number_match, "I do not know", 3) == 0.0
    assert ask(number_match, "3", None) is None
    with pytest.raises(ValueError, match="the answer 'many' holds no number"):
        number_match(["p"], ["3"], [{"answer": "many"}])


def test_without_the_column_there_is_no_opinion() -> None:
    for function in (exact_match, contains_answer, number_match):
        assert function(["p", "p"], ["a 1", "a 1"], [{}, {"answer": "a 1"}]) == [None, 1.0]
