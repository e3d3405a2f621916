"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """`bad` would stop a run; `note` is worth knowing and stops nothing."""

    GOOD = "good"
    BAD = "bad"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's; what is bad comes with its mend."""

    what: str
    mark: Mark
    said: str
    mend: str = ""

    def __post_init__(self) -> None:
        assert (self.mark is Mark.BAD) == bool(self.mend), "a mend belongs to what is bad, and only there"


def good(what: str, said: str) -> Finding:
    return Finding(what, Mark.GOOD, said)


def bad(what: str, said: str, mend: str) -> Finding:
    return Finding(what, Mark.BAD, said, mend)


def note(what: str, said: str) -> Finding:
    return Finding(what, Mark.NOTE, said)
