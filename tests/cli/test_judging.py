"""A pair on the screen: beside each other, or one under the other where that is too narrow."""

from __future__ import annotations

import io

from rich.console import Console

from keel.annotate.base import Pair
from keel.annotate.terminal import Key
from keel.cli.judging import pair_screen

PAIR = Pair("how do i clean my kettle ?", "scrub the kettle .", "thank you for asking .\x1b[2J", {})


def shown(width: int, number: int, answers: list[Key], *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    with pair_screen(console, [PAIR, PAIR], answers) as show, console.capture() as captured:
        show(number)
    return captured.get()


def test_side_by_side_where_there_is_room() -> None:
    text = shown(100, 0, [])
    (line,) = [line for line in text.splitlines() if "scrub" in line]
    assert line.index("scrub the kettle .") == 0
    assert line.index("thank you") == 50  # half the width
    assert "how do i clean my kettle ?" in text
    assert "1 of 2" in text
    assert "the last answer" not in text
    assert "a or 1, b or 2" in text


def test_one_under_the_other_in_a_narrow_terminal() -> None:
    lines = [line.rstrip() for line in shown(50, 1, [Key.SECOND]).splitlines()]
    at = lines.index("← scrub the kettle .")
    assert lines[at + 1] == ""
    assert lines[at + 2].startswith("→ thank you for asking .")
    assert "the last answer: right" in lines


def test_a_reply_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in shown(100, 0, [])


def test_a_terminal_shows_one_pair_at_a_time_and_arrows() -> None:
    text = shown(100, 0, [], terminal=True)
    assert text.startswith("\x1b[2J") or text.startswith("\x1b[H")
    assert "← → the better one" in text


def test_the_last_answer_may_be_taken_back() -> None:
    text = shown(100, 2, [Key.FIRST, Key.SKIP])
    assert "All pairs are judged." in text
    assert "the last answer: skipped" in text
