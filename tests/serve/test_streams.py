from __future__ import annotations

import pytest

from keel.serve.streams import settled


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", (), "one two"),
        ("caf\ufffd", (), "caf"),
        ("one\n", ("\n\n",), "one"),
        ("one\ntwo", ("\n\n",), "one\ntwo"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("xaab", ("aac", "abd"), "xa"),
        ("the end", ("dust", "END"), "the en"),
        ("STOP", ("STOP",), ""),
    ],
)
def test_what_may_still_become_a_stop_string_waits(text: str, stops: tuple[str, ...], expected: str) -> None:
    assert settled(text, stops) == expected
