"""The contract of user's functions of (prompts, responses, rows): rewards, utilities, measures.

`f(prompts, responses, rows) -> list[float | None]`, one entry a response; `rows` carries the data set's other
columns. None means "no opinion". An exception, a wrong length, or a value that is no finite number stops the run
with a sentence that names the function and the row, because going on would train on noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keel.errors import UserError

Rows = Sequence[Mapping[str, Any]]
RewardFunction = Callable[[Sequence[str], Sequence[str], Rows], list[float | None]]


def checked(name: str, function: Callable[..., Any]) -> RewardFunction:
    """The user's function, held to the contract."""

    def call(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float | None]:
        try:
            values = function(list(prompts), list(responses), list(rows))
        except Exception as error:
            raise UserError(f"the function {name} raised {type(error).__name__}: {error}") from error
        if not isinstance(values, list | tuple) or len(values) != len(responses):
            found = f"{len(values)} values" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
            raise UserError(f"the function {name} returned {found} for {len(responses)} responses; return a list, one each")
        return [_number(name, value, row, responses[row]) for row, value in enumerate(values)]

    return call


def _number(name: str, value: object, row: int, response: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise UserError(
        f"the function {name} gave {value!r} for response {row} ({response[:60]!r}); give a finite number, or None for no opinion"
    )
