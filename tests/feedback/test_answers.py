"""Answers against permutations and distances worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from keel.feedback.answers import disagreement, kept_answer, read_answer, read_criteria
from keel.feedback.projects import Criterion, Settings
from keel.feedback.refused import Refused
from keel.feedback.tables import Kind

PLAIN = Settings()


@pytest.mark.parametrize(
    ("kind", "shown", "order", "kept"),
    [
        # shown first is position 2, then 0, then 1: three responses, an order that is not its own inverse
        ("rank", {"ranks": [1, 3, 2]}, [2, 0, 1], {"ranks": (3, 2, 1)}),
        ("rate", {"ratings": [7, 1, 4]}, [2, 0, 1], {"ratings": (1, 4, 7)}),
        ("compare", {"best": 0, "strength": "slight"}, [1, 0], {"best": 1, "strength": "slight"}),
        ("compare", {"best": None, "strength": "tie"}, [1, 0], {"best": None, "strength": "tie"}),
        ("review", {"accepted": False, "edited": "so"}, [0], {"accepted": False, "edited": "so"}),
    ],
)
def test_what_was_said_of_places_is_kept_of_positions(
    kind: Kind, shown: dict[str, Any], order: list[int], kept: dict[str, Any]
) -> None:
    answer = read_answer(kind, shown, responses=len(order), settings=PLAIN)
    assert answer.placed(order).model_dump() == kept


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        ("compare", {"best": 2, "strength": "clear"}, "answer.best"),
        ("compare", {"best": None, "strength": "clear"}, "answer"),
        ("compare", {"best": 1, "strength": "tie"}, "answer"),
        ("compare", {"best": True, "strength": "clear"}, "answer.best"),
        ("compare", {"best": 0, "strength": "very"}, "answer.strength"),
        ("compare", {"best": 0, "strength": "clear", "extra": 1}, "answer.extra"),
        ("compare", ["best"], "answer"),
        ("rank", {"ranks": [1, 2, 3]}, "answer"),
        ("rank", {"ranks": [0, 1]}, "answer.ranks.0"),
        ("rate", {"ratings": [8, 1]}, "answer.ratings"),
        ("rate", {"ratings": [1.5, 1]}, "answer.ratings.0"),
        ("review", {"accepted": True, "edited": "better"}, "answer"),
        ("review", {"accepted": False, "edited": "a\x00b"}, "answer.edited"),
    ],
)
def test_an_answer_that_says_nothing_is_refused_by_name(kind: Kind, given: Any, field: str) -> None:
    with pytest.raises(Refused) as refused:
        read_answer(kind, given, responses=2, settings=PLAIN)
    assert refused.value.code == "invalid"
    assert "Value error" not in str(refused.value)
    assert (refused.value.field or "").rstrip(".") == field


@pytest.mark.parametrize(
    ("kind", "answers", "apart"),
    [
        ("compare", [{"best": 0, "strength": "clear"}, {"best": 1, "strength": "clear"}], 1.0),
        ("compare", [{"best": 0, "strength": "clear"}, {"best": 0, "strength": "slight"}], 0.25),
        ("compare", [{"best": 0, "strength": "clear"}, {"best": None, "strength": "both_bad"}], 0.5),
        ("rank", [{"ranks": [1, 2, 3]}, {"ranks": [3, 2, 1]}], 1.0),
        ("rank", [{"ranks": [1, 2, 3]}, {"ranks": [2, 1, 3]}], 1 / 3),
        ("rank", [{"ranks": [1, 2]}, {"ranks": [1, 1]}], 0.5),
        ("rate", [{"ratings": [1]}, {"ratings": [7]}], 1.0),
        ("rate", [{"ratings": [1, 4]}, {"ratings": [4, 4]}], 0.25),
        ("review", [{"accepted": True}, {"accepted": False}, {"accepted": True}], 2 / 3),
        ("review", [{"accepted": True}], 0.0),
    ],
)
def test_disagreement_is_the_mean_distance_of_two(kind: Kind, answers: list[dict[str, Any]], apart: float) -> None:
    assert disagreement([kept_answer(kind, one) for one in answers], (1, 7)) == pytest.approx(apart)


def test_ratings_agree_to_within_one_and_rankings_exactly() -> None:
    assert kept_answer("rate", {"ratings": [3, 5]}).agrees(kept_answer("rate", {"ratings": [4, 4]}))  # type: ignore[arg-type]
    assert not kept_answer("rate", {"ratings": [3]}).agrees(kept_answer("rate", {"ratings": [5]}))  # type: ignore[arg-type]
    assert kept_answer("rank", {"ranks": [1, 2]}).agrees(kept_answer("rank", {"ranks": [4, 5]}))  # type: ignore[arg-type]
    assert not kept_answer("rank", {"ranks": [1, 1]}).agrees(kept_answer("rank", {"ranks": [1, 2]}))  # type: ignore[arg-type]


def test_criteria_name_a_response_or_one_of_their_options() -> None:
    settings = Settings(criteria=(Criterion(name="helpful"), Criterion(name="tone", options=("warm", "cold"))))
    assert read_criteria("compare", {"helpful": 0, "tone": None}, order=[1, 0], settings=settings) == {
        "helpful": 1,
        "tone": None,
    }
    assert read_criteria("review", {"tone": "cold"}, order=[0], settings=settings) == {"tone": "cold"}
    for kind, given in (("compare", {"helpful": 2}), ("compare", {"kind": 0}), ("rate", {"tone": "hot"})):
        with pytest.raises(Refused):
            read_criteria(kind, given, order=[1, 0], settings=settings)  # type: ignore[arg-type]
