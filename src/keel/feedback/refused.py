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


def not_valid(error: _Invalid, whole: str, *, within: Sequence[str] = (), skip: int = 0) -> Refused:
    """What pydantic found first, in its words; `whole` is what it is of where no field is to blame.

    The field's path begins with `within`, and leaves out the first `skip` parts of pydantic's.
    """
    first = error.errors()[0]
    field = ".".join((*within, *map(str, first["loc"][skip:])))
    return Refused("invalid", f"{field or whole}: {first['msg'].removeprefix('Value error, ')}", field=field or None)
