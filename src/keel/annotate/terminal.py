"""A person who judges pairs in a terminal: one key a pair, and on the disk before the next pair is shown.

This is no `Annotator`: a person may call two responses equal, skip a pair, take an answer back, and stop before the
last one, while the protocol wants a winner and its probability for every pair.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from keel.errors import UserError
from keel.runs.metrics import SamplesLog, read_lines


class Key(StrEnum):
    """What a person says to a pair; all but the last two are answers."""

    FIRST = "first"
    SECOND = "second"
    EQUAL = "equal"
    SKIP = "skip"
    UNDO = "undo"
    STOP = "stop"


_KEYS = {
    **dict.fromkeys("a1", Key.FIRST),
    **dict.fromkeys("b2", Key.SECOND),
    **dict.fromkeys("e=", Key.EQUAL),
    "s": Key.SKIP,
    "u": Key.UNDO,
    "q": Key.STOP,
    "\x04": Key.STOP,  # Ctrl-D
}
_ARROWS = {b"D": Key.FIRST, b"C": Key.SECOND, b"A": Key.EQUAL, b"B": Key.SKIP}
_ESCAPE = b"\x1b"
_ESCAPE_SECONDS = 0.05  # what follows an arrow's first byte comes at once; a person's next key does not


class Journal:
    """The answers on disk, one line a pair in the order of the pairs: `{"iteration": 3, "answer": "first"}`.

    An answer that was given is kept whatever happens next; a torn last line of a power cut is dropped.
    """

    def __init__(self, path: Path) -> None:
        """Reads what is there. Raises UserError where the file holds anything but answers."""
        self._log = SamplesLog(path)
        self._log.truncate_after(sys.maxsize)
        try:
            self.answers = [_answer(row["answer"]) for row in read_lines(path)]
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} holds a line that is no answer; restore the file, or remove it") from None

    def add(self, answer: Key) -> None:
        """Keep the answer to the next pair: on the disk when this returns."""
        self._log.append(len(self.answers), [{"answer": answer.value}])
        self._log.sync()
        self.answers.append(answer)

    def take_back(self) -> None:
        """Forget the last answer, if there is one."""
        if self.answers:
            self.answers.pop()
            self._log.truncate_after(len(self.answers) - 1)


def judge(count: int, journal: Journal, read: Callable[[], Key], show: Callable[[int], None]) -> None:
    """Ask for the answers that are missing of `count` pairs, until all are given or the person stops.

    `show(n)` shows pair n (n = count: everything is judged, and the last answer may still be taken back).
    """
    if len(journal.answers) >= count:
        return
    while True:
        number = len(journal.answers)
        show(number)
        key = read()
        if key is Key.UNDO:
            journal.take_back()
        elif key is Key.STOP or number == count:
            return
        else:
            journal.add(key)


@contextmanager
def reading_keys(stream: TextIO) -> Iterator[Callable[[], Key]]:
    """A function that waits for the next key.

    A terminal gives keys as they are pressed, arrows included; it is put back as it was however the context ends.
    Anything else is read line by line, a letter each (a, b, =, s, u, q), and its end is `Key.STOP`; the function
    raises UserError for a line that is none of them.
    """
    if stream.isatty():
        with _unbuffered(stream.fileno()):
            yield lambda: _pressed(stream.fileno())
    else:
        yield lambda: _from_line(stream)


def _answer(value: str) -> Key:
    key = Key(value)
    if key in (Key.UNDO, Key.STOP):
        raise ValueError(value)
    return key


def _from_line(stream: TextIO) -> Key:
    line = stream.readline()
    if not line:
        return Key.STOP
    key = _KEYS.get(line.strip().lower())
    if key is None:
        raise UserError(f"{line.strip()!r} is no answer; give one of a, b, = (equal), s (skip), u (undo), q (stop)")
    return key


def _pressed(descriptor: int) -> Key:
    """The next key that means something; others are passed over."""
    while True:
        byte = _byte(descriptor)
        arrow = byte == _ESCAPE
        key = _ARROWS.get(_after_escape(descriptor)) if arrow else _KEYS.get(byte.decode("latin-1").lower())
        if key is not None:
            return key


def _after_escape(descriptor: int) -> bytes:
    """The byte that ends the sequence: ESC [ D or, from some terminals, ESC O D; b"" for the Escape key alone."""
    sequence = b""
    while select.select([descriptor], [], [], _ESCAPE_SECONDS)[0]:
        byte = _byte(descriptor)
        sequence += byte
        if (byte.isalpha() and sequence != b"O") or byte == b"~":
            break
    return sequence[1:] if sequence[:1] in (b"[", b"O") else b""


def _byte(descriptor: int) -> bytes:
    try:
        byte = os.read(descriptor, 1)
    except OSError:  # the terminal was closed
        byte = b""
    if not byte:
        raise SystemExit(128 + signal.SIGHUP)
    return byte


@contextmanager
def _unbuffered(descriptor: int) -> Iterator[None]:
    """Keys at once and unseen. Ctrl-C, SIGTERM and a closed terminal end the program through the `finally` below."""

    def set_up_again(number: int, frame: FrameType | None) -> None:
        with suppress(termios.error):  # a closed terminal sends this signal too
            tty.setcbreak(descriptor, termios.TCSADRAIN)

    before = termios.tcgetattr(descriptor)
    reactions: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGTERM: _leave,
        signal.SIGHUP: _leave,
        signal.SIGCONT: set_up_again,  # the shell has reset it between Ctrl-Z and fg
    }
    handlers = {number: signal.signal(number, reaction) for number, reaction in reactions.items()}
    try:
        tty.setcbreak(descriptor)  # and forget what was typed before the first pair was there to be seen
        yield
    finally:
        with suppress(termios.error):  # a closed terminal
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
