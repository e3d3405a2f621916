"""How far a stage is, in a small file beside its logs: for those who watch the run, and nobody else."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from keel.runs.console import Console
from keel.runs.files import to_json
from keel.runs.layout import PROGRESS

MINUTES_LEFT = "minutes left"
"""Among the numbers of a progress line, where whoever draws it knows better than its pace."""
_EVERY = 1.0  # seconds


class KeptProgress:
    """A console around another one, which also writes the latest progress into the stage's directory, once a second."""

    def __init__(self, console: Console, stage: Path) -> None:
        self._console = console
        self._path = stage / PROGRESS
        self._line = ""  # what is counted
        self._began = (0.0, 0)  # when that was begun, and with how much done
        self._kept_at = 0.0

    def say(self, text: str) -> None:
        self._console.say(text)

    def samples(self, stage: str, rows: list[dict[str, Any]]) -> None:
        self._console.samples(stage, rows)

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        self._console.progress(stage, done, total, numbers)
        now = time.monotonic()
        if stage != self._line:
            self._line, self._began = stage, (now, done)
        elif now - self._kept_at < _EVERY:
            return
        self._kept_at = now
        self._keep({"of": stage, "done": done, "total": total, "seconds_left": self._left(now, done, total, numbers)})

    def _left(self, now: float, done: int, total: int, numbers: Mapping[str, float]) -> float | None:
        """At the pace seen since this line was begun."""
        if MINUTES_LEFT in numbers:
            return 60 * numbers[MINUTES_LEFT]
        since, had = self._began
        return (total - done) * (now - since) / (done - had) if done > had else None

    def _keep(self, line: Mapping[str, Any]) -> None:
        """Renamed into place, so that it is whole; without waiting for the disk, whose errors do not end the run."""
        beside = self._path.with_name(f".{PROGRESS}.tmp")
        with suppress(OSError):
            beside.write_text(to_json(line) + "\n", encoding="utf-8")
            os.replace(beside, self._path)
