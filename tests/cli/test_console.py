"""What a run shows while it goes, in a terminal and in a file."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from keel.cli.console import TerminalConsole, one_line, printable
from tests.report.support import HOSTILE


def plain() -> tuple[TerminalConsole, io.StringIO]:
    file = io.StringIO()
    return TerminalConsole(Console(file=file, width=60, highlight=False)), file


def test_a_file_gets_the_first_line_the_last_and_one_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console, file = plain()
    with console:
        for done in range(1, 101):
            now = 1000.0 + done  # a second a step
            console.progress("ppo", done, 100, {"ppo/validation/kl": 0.012345, "tokens/s": 1.0})
    lines = file.getvalue().splitlines()
    assert lines[0] == "ppo       1/100  validation kl 0.01235  tokens/s 1"
    assert [line.split()[1] for line in lines] == ["1/100", "21/100", "41/100", "61/100", "81/100", "100/100"]


def test_stages_are_timed_apart() -> None:
    console, file = plain()
    console.progress("sft", 1, 9, {})
    console.progress("reward", 1, 9, {})
    console.progress("sft", 2, 9, {})
    console.heading("the terse taste")
    console.progress("sft", 1, 9, {})
    assert [line.split()[0] for line in file.getvalue().splitlines() if line[0].isalpha()] == [
        "sft",
        "reward",
        "the",
        "sft",
    ]


def test_one_sample_is_shown_on_one_line() -> None:
    console, file = plain()
    rows = [
        {"prompt": "how  are\nyou", "response": " fine [bold]x[/bold]\n" + "so " * 100, "score": 1.234, "kl": 0.56},
        {"prompt": "another", "response": "one", "score": 0.0, "kl": 0.0},
    ]
    console.samples("ppo", rows)
    (line,) = file.getvalue().splitlines()
    assert line.strip().startswith("how are you → fine [bold]x[/bold] so so")
    assert line.endswith("…  [score 1.23, KL 0.6]")


def test_what_is_rounded_to_nothing_has_no_sign() -> None:
    console, file = plain()
    console.samples("ppo", [{"prompt": "a", "response": "b", "score": -0.004, "kl": -0.04}])
    console.samples("ppo", [{"prompt": "a", "response": "b", "score": -0.006, "kl": -0.06}])
    console.progress("ppo", 1, 1, {"kl": -0.0, "score": -0.00001})
    ends = [line.strip().partition("[")[2] or line for line in file.getvalue().splitlines()]
    assert ends == ["score 0.00, KL 0.0]", "score -0.01, KL -0.1]", "ppo       1/1  kl 0  score -1e-05"]


def test_a_response_cannot_steer_the_terminal() -> None:
    console, file = plain()
    console.samples("ppo", [{"prompt": "a\x1b]0;b", "response": HOSTILE, "score": 0.0, "kl": 0.0}])
    text = file.getvalue()
    assert not any(ord(char) < 32 and char != "\n" for char in text)
    assert "a�]0;b" in text
    assert "<script>alert(1)</script>" in text
    text.encode()  # half a surrogate pair could not be printed


def test_only_what_can_be_seen_is_printed() -> None:
    assert printable("ü\t→\n日\x1b[2J\x07\x9b\u202e\ud800") == "ü\t→\n日�[2J����"
    assert one_line("a \n b\x00", 10) == "a b�"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"


def test_sentences_and_tables_are_not_markup() -> None:
    console, file = plain()
    console.say("[red]mind[/red] the 5 of 7 [rows]")
    console.table("Results", ["", "polite"], [["score [x]", "1.5"]])
    assert "[red]mind[/red] the 5 of 7 [rows]" in file.getvalue()
    assert "score [x]" in file.getvalue()


def test_a_terminal_gets_a_live_display() -> None:
    file = io.StringIO()
    with TerminalConsole(Console(file=file, width=100, force_terminal=True, highlight=False)) as console:
        console.progress("sft", 1, 4, {"sft/loss": 2.5})
        console.progress("sft", 4, 4, {"sft/loss": 1.25})
        console.heading("another")
        console.progress("sft", 2, 4, {"sft/loss": 3.0})
        console.progress("people", 1, 4, {"[red]ann": 3.0})
    text = file.getvalue()
    assert "4/4" in text
    assert "[red]ann 3" in text
    assert "loss 1.25" in text
    assert "2/4" in text


def test_an_interruption_says_how_to_go_on() -> None:
    console, file = plain()
    with pytest.raises(KeyboardInterrupt), console:
        raise KeyboardInterrupt
    assert (
        " ".join(file.getvalue().split())
        == "Stopped; the same command, without --fresh-from, goes on from the last checkpoint."
    )
