"""Numbers as a sentence says them."""

from __future__ import annotations

import pytest

from keel.feedback.words import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 votes"), (1, "1 vote"), (2, "2 votes"), (1200, "1,200 votes"), (1001, "1,001 votes")]
)
def test_what_is_counted_is_one_or_many(number: int, said: str) -> None:
    assert counted(number, "vote") == said
