"""Following a file of JSON lines that somebody else appends to, and may cut back when a run is resumed."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHUNK = 4 << 20
_MEMORY = 64  # bytes before the place that was read to: they tell whether the file is still the one that was read
_LONGEST_TEXT = 20_000  # characters of a string that are kept


@dataclass(frozen=True)
class News:
    """What a file has gained. If it `restarted`, all that was read of it before is void. `behind`: there is more."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    restarted: bool = False
    behind: bool = False


class Tail:
    """The place to which one file has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None  # device and inode
        self._place = 0
        self._before = b""  # the bytes that end there

    def read(self, deadline: float) -> News:
        """The whole lines that are new, as far as they are JSON objects, till `time.monotonic()` reaches `deadline`.

        A last line without its end is not a line yet. Where the file was replaced, cut back or is gone, reading
        starts again. At least one chunk is read, so that there is progress whatever the deadline.
        """
        rows: list[dict[str, Any]] = []
        file = open_regular(self.path)
        if file is None:
            return News(restarted=self._forget())
        with file:
            status = os.fstat(file.fileno())
            restarted = self._changed(file.fileno(), status) and self._forget()
            self._identity, size = (status.st_dev, status.st_ino), status.st_size
            file.seek(self._place)
            while self._place < size:
                chunk = file.read(_CHUNK)
                end = chunk.rfind(b"\n") + 1
                if not end and len(chunk) < _CHUNK:
                    break
                end = end or len(chunk)  # no line of a run is as long as that: passed over
                rows += [row for line in chunk[:end].splitlines() if (row := parse(line)) is not None]
                self._before = (self._before + chunk[:end])[-_MEMORY:]
                self._place += end
                file.seek(self._place)
                if time.monotonic() >= deadline:
                    return News(rows, restarted, behind=self._place < size)
        return News(rows, restarted)

    def _changed(self, descriptor: int, status: os.stat_result) -> bool:
        """Whether what was read is no longer the beginning of the file."""
        start = self._place - len(self._before)
        same = self._identity == (status.st_dev, status.st_ino)
        return not same or os.pread(descriptor, len(self._before), start) != self._before

    def _forget(self) -> bool:
        """Start at the beginning again; whether anything had been read."""
        had = self._place > 0
        self._identity, self._place, self._before = None, 0, b""
        return had


def open_regular(path: Path) -> Any:
    """An unbuffered binary file, or None where there is none or something else has its name (a pipe would block)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb", buffering=0)


def parse(content: bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def clean(value: Any) -> Any:
    """The value without what a page could not carry: lone surrogates, the ends of endless texts, a bottomless nest."""
    try:
        return _clean(value)
    except RecursionError:
        return None


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        cut = value if len(value) <= _LONGEST_TEXT else value[:_LONGEST_TEXT] + "…"
        return cut if cut.isascii() else cut.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value
