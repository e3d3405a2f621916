"""Numbers as a sentence says them."""

from __future__ import annotations


def counted(number: int, one: str) -> str:
    """The number and what is counted, of which an s makes the plural: 1 vote, 1,200 votes."""
    return f"{number:,} {one if number == 1 else one + 's'}"
