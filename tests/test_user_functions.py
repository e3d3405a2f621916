from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from keel.errors import UserError
from keel.user_functions import checked, checked_numbers

PROMPTS = ["p0", "p1", "p2"]
RESPONSES = ["r0", "r1", "r2"]
ROWS = [{"answer": index} for index in range(3)]


def returning(values: Any) -> Any:
    return lambda prompts, responses, rows: values


def test_it_sees_prompts_responses_and_the_other_columns() -> None:
    def function(prompts: list[str], responses: list[str], rows: list[Any]) -> list[float]:
        return [float(f"{p[1]}{r[1]}{row['answer']}") for p, r, row in zip(prompts, responses, rows, strict=True)]

    assert checked("my:f", function)(PROMPTS, RESPONSES, ROWS) == [0.0, 111.0, 222.0]


@pytest.mark.parametrize(
    "values",
    [
        (1, 0, -2.5),
        [True, False, -2.5],
        np.array([1.0, 0.0, -2.5]),
        torch.tensor([1.0, 0.0, -2.5]),
        [np.float32(1), np.int64(0), np.float64(-2.5)],
        [torch.tensor(1.0), torch.tensor([0]), Decimal("-2.5")],
    ],
    ids=["ints", "bools", "array", "tensor", "numpy scalars", "torch scalars"],
)
def test_every_kind_of_number_becomes_a_float(values: Any) -> None:
    numbers = checked("my:f", returning(values))(PROMPTS, RESPONSES, ROWS)
    assert numbers == [1.0, 0.0, -2.5]
    assert {type(number) for number in numbers} == {float}


def test_none_is_no_opinion_unless_a_number_is_needed() -> None:
    function = returning([1.0, None, 2.0])
    assert checked("my:f", function)(PROMPTS, RESPONSES, ROWS) == [1.0, None, 2.0]
    with pytest.raises(UserError, match=r"the function my:f returned None \(row 1, prompt 'p1', response 'r1'\)"):
        checked_numbers("my:f", function)(PROMPTS, RESPONSES, ROWS)


@pytest.mark.parametrize("check", [checked, checked_numbers])
@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, "0.5", np.float32("nan"), [0.5], 10**400, 1j, torch.zeros(2), np.zeros(2)]
)
def test_what_is_no_finite_number_names_function_row_and_response(check: Any, bad: Any) -> None:
    place = r"\(row 2, prompt 'p2', response 'r2'\); return a finite number$"
    with pytest.raises(UserError, match=r"(?s)^the function my:f returned .* " + place):
        check("my:f", returning([0.0, 1.0, bad]))(PROMPTS, RESPONSES, ROWS)


@pytest.mark.parametrize("check", [checked, checked_numbers])
@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.0, 1.0], "2 values"),
        ([0.0] * 4, "4 values"),
        (np.zeros(2), "2 values"),
        (None, "a NoneType"),
        (0.5, "a float"),
        (torch.tensor(0.5), "a float"),
        ("abc", "a str"),
        ({0.0: 0, 1.0: 1, 2.0: 2}, "a dict"),
        ((value for value in range(3)), "a generator"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_wrong_length_is_refused(check: Any, values: Any, found: str) -> None:
    sentence = f"^the function my:f returned {found} for 3 responses; return a list, one each$"
    with pytest.raises(UserError, match=sentence):
        check("my:f", returning(values))(PROMPTS, RESPONSES, ROWS)


def test_an_exception_names_the_first_row_that_fails_alone() -> None:
    def function(prompts: list[str], responses: list[str], rows: Sequence[Any]) -> list[float]:
        return [1 / (1 - row["answer"]) / (2 - row["answer"]) for row in reversed(rows)]  # fails first on row 2

    sentence = (
        r"^the function my:f raised ZeroDivisionError: (float )?division by zero "
        r"\(row 1, prompt 'p1', response 'r1'\); mend the function$"
    )
    with pytest.raises(UserError, match=sentence) as caught:
        checked("my:f", function)(PROMPTS, RESPONSES, ROWS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_exception_of_the_whole_batch_alone() -> None:
    def function(prompts: list[str], responses: list[str], rows: list[Any]) -> list[float]:
        if len(responses) > 1:
            raise MemoryError("too many")
        return [0.0]

    sentence = r"raised MemoryError: too many \(on 3 responses together, on none of them alone\)"
    with pytest.raises(UserError, match=sentence):
        checked("my:f", function)(PROMPTS, RESPONSES, ROWS)


def test_a_long_text_is_cut_in_the_sentence() -> None:
    with pytest.raises(UserError, match=rf"prompt '{'p' * 59}…', response '{'r' * 60}'\)"):
        checked("my:f", returning([math.nan]))(["p" * 61], ["r" * 60], [{}])


def test_what_the_function_does_to_its_arguments_stays_with_it() -> None:
    def function(prompts: list[str], responses: list[str], rows: list[Any]) -> list[float]:
        numbers = [float(len(responses.pop())) for _ in prompts]
        prompts.clear()
        return numbers

    responses = list(RESPONSES)
    assert checked("my:f", function)(PROMPTS, responses, ROWS) == [2.0, 2.0, 2.0]
    assert responses == RESPONSES
