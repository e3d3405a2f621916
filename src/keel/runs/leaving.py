"""Leaving a run between two steps, with everything saved, when the process is told to end (SIGTERM).

Schedulers send it some seconds before they kill: what was computed since the last checkpoint need not be lost.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from keel.dist.launcher import LEFT

GOES_ON = "the same command, without --fresh-from, goes on from"
STOPPED = f"Stopped; {GOES_ON} the last checkpoint."  # by hand
_asked = False


class Left(SystemExit):
    """The run has been left after a step, and its checkpoint is written. Exit code 143."""

    def __init__(self, sentence: str) -> None:
        super().__init__(LEFT)
        self.sentence = sentence


@contextmanager
def heeding() -> Iterator[None]:
    """While the context lasts SIGTERM asks for the end after the present step; a second one ends the process at once.

    In the main thread.
    """
    global _asked
    before = signal.signal(signal.SIGTERM, _ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked = False


def asked() -> bool:
    """Whether the end has been asked for."""
    return _asked


def _ask(number: int, frame: object) -> None:
    global _asked
    _asked = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
