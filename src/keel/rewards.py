"""Ready-made reward functions that compare a response with the reference answer in its row. No torch.

In a recipe `{function: "keel.rewards:exact_match"}`. Each gives 1.0 or 0.0, and no opinion (None) where the row's
`answer` column is missing or null. An answer is text or a number, or a list of them: then any one of them will do.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

_COLUMN = "answer"
_EDGES = " .,;:!?'\"`*()[]{}"
_NUMBER = re.compile(r"(?<![\w.])([-+−]?)[$€£]?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?!\d)")
Rows = Sequence[Mapping[str, Any]]


def exact_match(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float | None]:
    """Whether the response is the answer, both normalised (see `normalise`)."""
    return _compare(responses, rows, lambda response, answer: normalise(response) == normalise(answer))


def contains_answer(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float | None]:
    """Whether the answer stands in the response as whole words, both normalised (see `normalise`)."""
    return _compare(responses, rows, lambda response, answer: _stands_in(normalise(answer), normalise(response)))


def number_match(prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float | None]:
    """Whether the response's last number equals the answer's last number, as decimals: 1,200 = 1200.0.

    A currency sign is skipped; a percent sign or a unit changes nothing. Raises ValueError for an answer without a
    number.
    """
    return _compare(responses, rows, lambda response, answer: last_number(response) == _number_of(answer))


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, white space made single spaces, without punctuation or brackets at the ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(_EDGES)


def last_number(text: str) -> Decimal | None:
    """The last number written in digits, unless it ends a word (B12); None where there is none."""
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    sign, digits = numbers[-1].groups()
    number = Decimal(digits.replace(",", ""))
    return -number if sign in ("-", "−") else number


def _number_of(answer: str) -> Decimal:
    number = last_number(answer)
    if number is None:
        raise ValueError(f"the answer {answer!r} holds no number")
    return number


def _stands_in(answer: str, said: str) -> bool:
    return bool(answer) and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", said) is not None


def _compare(responses: Sequence[str], rows: Rows, matches: Callable[[str, str], bool]) -> list[float | None]:
    return [_any(response, row.get(_COLUMN), matches) for response, row in zip(responses, rows, strict=True)]


def _any(response: str, answer: Any, matches: Callable[[str, str], bool]) -> float | None:
    if answer is None:
        return None
    answers = answer if isinstance(answer, list | tuple) else [answer]
    return float(any(matches(response, str(one)) for one in answers))
