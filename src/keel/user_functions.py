"""The contract of a user's functions on responses: rewards, utilities, measures.

`f(prompts, responses, rows) -> list[float | None]`, one entry a response; `rows` carries the data set's other
columns, and None means "no opinion". Each response is judged by itself: in workers the lists hold one (see
keel.engines.reward_functions). An exception, a wrong length, or a value that is no finite number ends the run with a
sentence that names the function, the row and the response: going on would train on noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

from keel.errors import UserError

Rows = Sequence[Mapping[str, Any]]
Opinions = Callable[[Sequence[str], Sequence[str], Rows], list[float | None]]
Numbers = Callable[[Sequence[str], Sequence[str], Rows], list[float]]


class FunctionRaised(UserError):
    """The function itself raised, where otherwise it returned what the contract does not allow."""


_SHOWN = 60  # characters of a prompt or a response that a sentence quotes


def checked(name: str, function: Callable[..., Any]) -> Opinions:
    """The user's function, held to the contract; `name` is what errors call it, say "my_rules:polite".

    It may also return a NumPy array or a tensor. Raises UserError where it breaks the contract.
    """

    def call(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float | None]:
        values = _values(name, function, prompts, responses, rows)
        return [
            None if value is None else _number(name, value, row, prompts[row], responses[row])
            for row, value in enumerate(values)
        ]

    return call


def checked_numbers(name: str, function: Callable[..., Any]) -> Numbers:
    """As `checked`, for where a response without a number is of no use: None is refused as well."""

    def call(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float]:
        values = _values(name, function, prompts, responses, rows)
        return [_number(name, value, row, prompts[row], responses[row]) for row, value in enumerate(values)]

    return call


def ask_one(
    name: str, function: Callable[..., Any], row: int, prompt: str, response: str, columns: Mapping[str, Any]
) -> float | None:
    """What the function says of one response, number `row` of its batch. Raises UserError as `checked` does."""
    try:
        values = function([prompt], [response], [columns])
    except Exception as error:
        raise _raised(name, error, place(row, prompt, response)) from error
    (value,) = _listed(name, values, 1)
    return None if value is None else _number(name, value, row, prompt, response)


def _values(
    name: str, function: Callable[..., Any], prompts: Sequence[str], responses: Sequence[str], rows: Rows
) -> Sequence[object]:
    """What the function returns, one value a response."""
    try:
        values = function(list(prompts), list(responses), list(rows))
    except Exception as error:
        where, culprit = _first_failure(function, prompts, responses, rows, error)
        raise _raised(name, culprit, where) from culprit
    return _listed(name, values, len(responses))


def _raised(name: str, culprit: Exception, where: str) -> FunctionRaised:
    return FunctionRaised(
        f"the function {name} raised {type(culprit).__name__}: {culprit} ({where}); mend the function"
    )


def _listed(name: str, values: Any, count: int) -> Sequence[object]:
    if hasattr(values, "tolist"):  # a NumPy array, a tensor
        values = values.tolist()
    if not isinstance(values, list | tuple) or len(values) != count:
        found = f"{len(values)} values" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
        raise UserError(f"the function {name} returned {found} for {count} responses; return a list, one each")
    return values


def _first_failure(
    function: Callable[..., Any], prompts: Sequence[str], responses: Sequence[str], rows: Rows, error: Exception
) -> tuple[str, Exception]:
    """The first row that fails when asked alone; all of them, with `error`, where only the whole fails."""
    for row, (prompt, response, columns) in enumerate(zip(prompts, responses, rows, strict=True)):
        try:
            function([prompt], [response], [columns])
        except Exception as culprit:
            return place(row, prompt, response), culprit
    return f"on {len(responses)} responses together, on none of them alone", error


def _number(name: str, value: object, row: int, prompt: str, response: str) -> float:
    number = _as_float(value)
    if number is None or not math.isfinite(number):
        raise UserError(
            f"the function {name} returned {value!r} ({place(row, prompt, response)}); return a finite number"
        )
    return number


def _as_float(value: object) -> float | None:
    if not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # an array of several numbers, an int beyond floats
        return None


def place(row: int, prompt: str, response: str) -> str:
    """Where something went wrong, as sentences say it."""
    return f"row {row}, prompt {_quoted(prompt)}, response {_quoted(response)}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
