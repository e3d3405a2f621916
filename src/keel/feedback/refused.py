"""What cannot be done, and why: one sentence, and a word for programs."""

from __future__ import annotations

from typing import Literal

Code = Literal[
    "invalid", "unauthorised", "forbidden", "not_found", "conflict", "gone", "too_large", "too_many", "failed"
]


class Refused(Exception):
    """Raised by the modules, given a status by the web shell; `field` is what to mend where one is to blame."""

    def __init__(self, code: Code, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.retry_after = retry_after
        """Seconds."""
