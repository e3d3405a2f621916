"""Keys, answers on disk, and a terminal that is always given back as it was found."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from keel.annotate.terminal import Journal, Key, judge, reading_keys
from keel.errors import UserError

PATIENCE = 60.0  # seconds until a test that hangs fails
FIRST, SECOND, EQUAL, SKIP, UNDO, STOP = Key.FIRST, Key.SECOND, Key.EQUAL, Key.SKIP, Key.UNDO, Key.STOP

# Prints each key, and where no more of it came; dies of a ValueError at the first answer "equal".
PROGRAM = """
import fcntl, select, signal, sys, termios
from types import SimpleNamespace
from keel.annotate import terminal
from keel.annotate.terminal import Key, reading_keys

def waited(*arguments):
    found = select.select(*arguments)
    if not found[0]:
        print("nothing more", flush=True)
    return found

terminal.select = SimpleNamespace(select=waited)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
with reading_keys(sys.stdin) as read:
    print("ready", flush=True)
    while (key := read()) is not Key.STOP:
        print(key.value, flush=True)
        if key is Key.EQUAL:
            raise ValueError("by the program")
"""


class Terminal:
    """A program on a pseudo-terminal of its own, its output apart."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=self.slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        assert self.process.stdout is not None
        self.output: IO[str] = self.process.stdout
        assert self.line() == "ready"
        assert not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO)

    def line(self) -> str:
        assert select.select([self.output], [], [], PATIENCE)[0], "nothing was said"
        return self.output.readline().rstrip()

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def ended(self) -> int:
        return self.process.wait(timeout=PATIENCE)

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_arrows_and_letters(terminal: Terminal) -> None:
    pressed = {b"\x1b[D": "first", b"\x1bOC": "second", b"\x1b[B": "skip", b"b": "second", b"1": "first", b"U": "undo"}
    for keys, name in pressed.items():
        terminal.press(keys)
        assert terminal.line() == name
    terminal.press(b"x\x1b[1;5D\x1b[3~\xc3\xa9")  # x, Ctrl-left, Delete, e-acute: nothing that is asked for
    terminal.press(b"s")
    assert terminal.line() == "skip"
    terminal.press(b"q")
    assert terminal.ended() == 0
    assert terminal.restored()


def test_escape_alone_does_not_swallow_the_next_key(terminal: Terminal) -> None:
    terminal.press(b"\x1b")
    assert terminal.line() == "nothing more"
    terminal.press(b"a")
    assert terminal.line() == "first"


def test_restored_after_ctrl_c(terminal: Terminal) -> None:
    terminal.press(b"\x03")
    assert terminal.ended() in (-signal.SIGINT, 1)
    assert terminal.restored()


def test_restored_after_sigterm(terminal: Terminal) -> None:
    terminal.process.terminate()
    assert terminal.ended() == 128 + signal.SIGTERM
    assert terminal.restored()


def test_restored_after_an_exception(terminal: Terminal) -> None:
    terminal.press(b"=")
    assert terminal.ended() == 1
    assert terminal.restored()


def test_set_up_again_when_continued(terminal: Terminal) -> None:
    termios.tcsetattr(terminal.slave, termios.TCSANOW, terminal.before)  # what a shell does after Ctrl-Z
    terminal.process.send_signal(signal.SIGCONT)
    terminal.press(b"a")  # without a line's end
    assert terminal.line() == "first"


def test_a_closed_terminal_ends_the_program() -> None:
    opened = Terminal()
    os.close(opened.master)
    try:
        assert opened.ended() == 128 + signal.SIGHUP
    finally:
        opened.process.kill()
        opened.output.close()
        os.close(opened.slave)


def test_lines_where_there_is_no_terminal() -> None:
    with reading_keys(io.StringIO("a\n 2 \n=\nS\nu\n")) as read:
        assert [read() for _ in range(7)] == [FIRST, SECOND, EQUAL, SKIP, UNDO, STOP, STOP]
    with reading_keys(io.StringIO("left\n")) as read, pytest.raises(UserError, match=r"'left' is no answer; give one"):
        read()


def judged(journal: Journal, count: int, *keys: Key) -> list[int]:
    """The numbers of the pairs that were shown; all keys must have been read."""
    shown: list[int] = []
    left = list(keys)
    judge(count, journal, lambda: left.pop(0), shown.append)
    assert not left
    return shown


def test_judging_undoing_and_going_on(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    journal = Journal(path)
    assert judged(journal, 4, UNDO, FIRST, SECOND, UNDO, EQUAL, STOP) == [0, 0, 1, 2, 1, 2]
    assert path.read_text() == '{"iteration": 0, "answer": "first"}\n{"iteration": 1, "answer": "equal"}\n'
    again = Journal(path)
    assert again.answers == [FIRST, EQUAL]
    # The last answer can be taken back; after it any other key ends.
    assert judged(again, 4, SKIP, FIRST, UNDO, SECOND, FIRST) == [2, 3, 4, 3, 4]
    assert Journal(path).answers == [FIRST, EQUAL, SKIP, SECOND]
    assert judged(again, 4) == []


def test_an_answer_is_on_disk_before_the_next_pair(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "judgements.jsonl")

    def pull_the_plug(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(5, journal, lambda: SECOND, pull_the_plug)
    assert Journal(tmp_path / "judgements.jsonl").answers == [SECOND, SECOND]


def test_a_torn_line_is_dropped_and_a_foreign_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    path.write_text('{"iteration": 0, "answer": "skip"}\n{"iteration": 1, "ans')
    journal = Journal(path)
    journal.add(FIRST)
    assert Journal(path).answers == [SKIP, FIRST]
    for foreign in ('{"iteration": 0, "answer": "undo"}\n', '{"iteration": 0}\n'):
        path.write_text(foreign)
        with pytest.raises(UserError, match=r"judgements\.jsonl holds a line that is no answer"):
            Journal(path)
