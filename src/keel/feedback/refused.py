"""What cannot be done, and why: one sentence, and a word for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from keel.errors import UserError

Code = Literal[
    "invalid",
    "unauthorised",
    "forbidden",
    "not_found",
    "conflict",
    "gone",
    "too_large",
    "too_many",
    "failed",
    "busy",
]


class Refused(Exception):
    """Raised by the modules, given a status by the web shell; `field` is what to mend where one is to blame."""

    def __init__(self, code: Code, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.retry_after = retry_after
        """Seconds."""


@contextmanager
def for_the_terminal(where: str = "") -> Iterator[None]:
    """What is refused inside is a UserError, which begins with `where`."""
    try:
        yield
    except Refused as refused:
        raise UserError(f"{where}{refused}") from None


class _Invalid(Protocol):
    def errors(self) -> Sequence[Any]: ...


_MENDS = {
    "missing": "give it",
    "extra_forbidden": "there is no such field; leave it out",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a number",
    "greater_than": "give more than {gt}",
    "greater_than_equal": "give {ge} or more",
    "less_than_equal": "give {le} or less",
    "string_too_short": "give {min_length} or more characters",
    "string_too_long": "give {max_length} characters or fewer",
    "too_short": "give {min_length} or more, not {actual_length}",
    "too_long": "give {max_length} or fewer, not {actual_length}",
    "literal_error": "give {expected}",
    "string_pattern_mismatch": "nothing here has such a name",
}
"""What to do, by pydantic's name of what is wrong; of the rest it says itself."""


def not_valid(error: _Invalid, whole: str, *, within: Sequence[str] = (), skip: int = 0) -> Refused:
    """What pydantic found first, and what mends it; `whole` is what it is of where no field is to blame.

    The field's path begins with `within`, and leaves out the first `skip` parts of pydantic's.
    """
    first = error.errors()[0]
    if first["type"] == "json_invalid":  # whose place is a number of letters, and no field
        return Refused("invalid", f"{whole} is no JSON: {first['ctx']['error']}, after {first['loc'][-1]} characters")
    field = ".".join((*within, *map(str, first["loc"][skip:])))
    mend = _MENDS.get(first["type"])
    words = first["msg"].removeprefix("Value error, ") if mend is None else mend.format(**first.get("ctx", {}))
    return Refused("invalid", f"{field or whole}: {words}", field=field or None)
